//! etcd's JSON gateway, as far as the tests need it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// A request to a member that hangs fails after this.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sends one request; the error is etcd's answer or the network's.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Value, String> {
    let (status, text) = exchange(address, path, &body.to_string()).map_err(|error| error.to_string())?;
    if status != 200 {
        return Err(format!("{status}: {text}"));
    }
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// HTTP/1.0: no chunks, and the end of the connection is the end of the answer.
fn exchange(address: SocketAddr, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no HTTP: {answer}")))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, text.to_owned()))
}

/// Writes one key.
pub(crate) fn put(address: SocketAddr, key: &str, value: &str) -> Result<(), String> {
    let body = json!({"key": base64(key.as_bytes()), "value": base64(value.as_bytes())});
    post(address, "/v3/kv/put", &body).map(drop)
}

/// Counts the keys that begin with a letter; linearizable.
pub(crate) fn count(address: SocketAddr, prefix: char) -> Result<u64, String> {
    let end = char::from(prefix as u8 + 1).to_string();
    let body = json!({"key": base64(prefix.to_string().as_bytes()), "range_end": base64(end.as_bytes()), "count_only": true});
    let answer = post(address, "/v3/kv/range", &body)?;
    Ok(number(&answer["count"]).unwrap_or_default())
}

/// What a member says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) leader: u64,
    pub(crate) raft_term: u64,
    pub(crate) raft_index: u64,
}

pub(crate) fn status(address: SocketAddr) -> Result<Status, String> {
    let answer = post(address, "/v3/maintenance/status", &json!({}))?;
    let field = |value: &Value| number(value).ok_or_else(|| answer.to_string());
    Ok(Status {
        cluster_id: field(&answer["header"]["cluster_id"])?,
        member_id: field(&answer["header"]["member_id"])?,
        leader: field(&answer["leader"]).unwrap_or_default(),
        raft_term: field(&answer["raftTerm"])?,
        raft_index: field(&answer["raftIndex"])?,
    })
}

/// 64-bit numbers are strings in JSON.
fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

fn base64(bytes: &[u8]) -> String {
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
