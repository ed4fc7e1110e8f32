//! etcd's JSON gateway and its peer port, as far as the sequences need them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::Value;

/// A page is ready at once or not at all.
const PAGE_DEADLINE: Duration = Duration::from_secs(3);

/// Sends one request; the error is etcd's answer or the network's.
pub(super) fn post(
    address: SocketAddr,
    path: &str,
    body: &Value,
    deadline: Duration,
) -> Result<Value, String> {
    let body = body.to_string();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (status, text) = exchange(address, &request, deadline).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    if status == 200 {
        return Ok(answer);
    }
    let message = answer.get("error").or_else(|| answer.get("message")).and_then(Value::as_str);
    Err(message.unwrap_or(&text).to_owned())
}

/// Reads a page; `None`: nothing answers here.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<String> {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: etcd\r\n\r\n"), PAGE_DEADLINE);
    answer.ok().filter(|(status, _)| *status == 200).map(|(_, text)| text)
}

/// The end of the answer is not left to the end of the connection: etcd's peer port does not always close it.
fn exchange(address: SocketAddr, request: &str, deadline: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, deadline)?;
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = BufReader::new(stream);
    let status = line(&mut answer)?;
    let status = status.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line(&mut answer)?.to_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            Some(_) => (),
            None => break,
        }
    }
    let mut body = Vec::new();
    while chunked {
        let size = u64::from_str_radix(&line(&mut answer)?, 16).map_err(io::Error::other)?;
        answer.by_ref().take(size).read_to_end(&mut body)?;
        line(&mut answer)?;
        chunked = size > 0;
    }
    answer.take(length).read_to_end(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn line(answer: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    answer.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// 64-bit numbers are strings in JSON, and zero is left out.
pub(super) fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Keys and values are in base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    let encoded = serde_json::to_value(ByteString(bytes.to_vec())).unwrap();
    encoded.as_str().unwrap().to_owned()
}

#[test]
fn base64_is_that_of_the_rfc() {
    let examples = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
    for (plain, encoded) in examples {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
