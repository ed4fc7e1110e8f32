//! etcd's JSON gateway and its peer port, as far as the sequences need them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A member that does not answer within this does not answer: what works takes milliseconds.
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

/// Sends one request; the error is etcd's answer or the network's.
pub(super) fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Value, String> {
    let body = body.to_string();
    let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (status, text) = exchange(address, &request).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    if status == 200 {
        return Ok(answer);
    }
    let message = answer.get("error").or_else(|| answer.get("message")).and_then(Value::as_str);
    Err(message.unwrap_or(&text).to_owned())
}

/// Whether something answers here.
pub(super) fn answers(address: SocketAddr, path: &str) -> bool {
    exchange(address, &format!("GET {path} HTTP/1.0\r\n\r\n")).is_ok_and(|(status, _)| status == 200)
}

/// HTTP/1.0: no chunks, and the end of the connection is the end of the answer.
fn exchange(address: SocketAddr, request: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no HTTP: {answer}")))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.to_owned()))
}

/// 64-bit numbers are strings in JSON, and zero is left out.
pub(super) fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Keys and values are in base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, place| word << 8 | u32::from(*chunk.get(place).unwrap_or(&0)));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn base64_is_that_of_the_rfc() {
    let examples = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
    for (plain, encoded) in examples {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
