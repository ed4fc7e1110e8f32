//! Asks an agent how its mirror is: one request, with a deadline and a bound.
//!
//! HTTP/1.0 on a plain connection, since that is all that one small answer needs: the server closes when it is done.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::manifests::AGENT_PORT;
use crate::mirror::agent::status::AgentStatus;

/// An agent answers from memory; more than this is a network that drops packets.
const DEADLINE: Duration = Duration::from_secs(2);
/// Far above any answer.
const LONGEST_ANSWER: u64 = 256 << 10;

/// What the agent at `ip` says; or why it does not, in words.
pub async fn probe(ip: &str) -> Result<AgentStatus, String> {
    let host = if ip.contains(':') { format!("[{ip}]:{AGENT_PORT}") } else { format!("{ip}:{AGENT_PORT}") };
    match tokio::time::timeout(DEADLINE, ask(&host)).await {
        Err(_) => Err(format!("no answer from {host} within {} s", DEADLINE.as_secs())),
        Ok(Err(error)) => Err(format!("{host}: {error}")),
        Ok(Ok(answer)) => read(&answer).map_err(|why| format!("{host}: {why}")),
    }
}

async fn ask(host: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /status HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn read(answer: &[u8]) -> Result<AgentStatus, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no whole HTTP answer")?;
    let (head, body) = answer.split_at(end + 4);
    let head = String::from_utf8_lossy(head);
    let first = head.lines().next().unwrap_or_default();
    if first.split(' ').nth(1) != Some("200") {
        return Err(format!("it answers {first}"));
    }
    serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use crate::mirror::agent::status::AgentPhase;

    use super::*;

    #[test]
    fn only_a_whole_and_good_answer_is_one() {
        let good = b"HTTP/1.0 200 OK\r\ncontent-length: 21\r\n\r\n{\"phase\":\"Streaming\"}";
        assert_eq!(read(good).unwrap().phase, AgentPhase::Streaming);
        assert_eq!(
            read(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err(),
            "it answers HTTP/1.1 503 Service Unavailable"
        );
        for bad in [&b""[..], b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n{", b"nonsense\r\n\r\n{}"] {
            assert!(read(bad).is_err());
        }
    }

    #[tokio::test]
    async fn a_server_that_answers_is_read_to_its_end() {
        let routes = axum::Router::new().route(
            "/status",
            axum::routing::get(async || serde_json::json!({"phase": "Paused", "keys": 7}).to_string()),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let status = read(&ask(&host).await.unwrap()).unwrap();
        server.abort();
        assert_eq!((status.phase, status.keys), (AgentPhase::Paused, Some(7)));
    }
}
