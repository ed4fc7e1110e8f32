//! What the proxy does to connections, seen from both ends.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::programs::PATIENCE;
use crate::proxy::{Proxy, Trap};

/// So long nothing comes when nothing is to come.
const SILENCE: Duration = Duration::from_millis(300);

/// A server that sends back what it gets, and a proxy before it.
struct Echo {
    proxy: Proxy,
    _server: JoinHandle<()>,
}

async fn echo() -> Echo {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap()).unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                drop(tokio::io::copy(&mut reads, &mut writes).await);
            });
        }
    });
    Echo { proxy, _server: server }
}

impl Echo {
    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.proxy.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// How long one byte takes there and back.
async fn round_trip(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    stream.write_all(b"x").await.unwrap();
    let byte = timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
    assert_eq!(byte, b'x');
    begun.elapsed()
}

/// The least of some: what the machine adds while it is busy is not the distance. Ends with the first that is so good.
async fn least_round_trip(stream: &mut TcpStream, good: Duration) -> Duration {
    let mut least = PATIENCE;
    for _ in 0..100 {
        least = least.min(round_trip(stream).await);
        if least < good {
            break;
        }
    }
    least
}

/// What ends the connection: nothing more of it is read.
async fn end(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
    read.map_err(|error| error.kind())
}

/// How a connection is refused: while it is made, or just after.
async fn refusal(proxy: &Proxy) -> ErrorKind {
    match TcpStream::connect(proxy.address()).await {
        Ok(mut stream) => end(&mut stream).await.unwrap_err(),
        Err(error) => error.kind(),
    }
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SILENCE, stream.read(&mut [0; 16])).await.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_distance_is_what_was_asked_for() {
    let echo = echo().await;
    let mut stream = echo.connect().await;
    let more = Duration::from_millis(1);
    assert!(least_round_trip(&mut stream, more).await < more, "it is far without a distance");
    for milliseconds in [1, 5, 30, 100] {
        let asked = Duration::from_millis(milliseconds);
        echo.proxy.distance(asked);
        let least = least_round_trip(&mut stream, asked + more).await;
        println!("measured: {asked:?} is {least:?}");
        assert!(least >= asked && least < asked + more, "{asked:?} is {least:?}");
    }
    // One way only.
    echo.proxy.change(|link| link.to_server.delay = Duration::ZERO);
    let asked = Duration::from_millis(50);
    let least = least_round_trip(&mut stream, asked + more).await;
    assert!(least >= asked && least < asked + more, "{least:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn much_is_under_way_at_once_and_arrives_as_it_was_sent() {
    let echo = echo().await;
    echo.proxy.distance(Duration::from_millis(100));
    let sent: Vec<u8> =
        (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let begun = Instant::now();
    let streams = (0..3).map(async |_| {
        let mut stream = echo.connect().await;
        let (mut reads, mut writes) = stream.split();
        let mut got = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(writes.write_all(&sent), reads.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        assert!(got == sent, "bytes were changed, lost or exchanged");
    });
    futures_join(streams).await;
    let seconds = begun.elapsed().as_secs_f64();
    println!("measured: 3 × 8 MB there and back at 100 ms in {seconds:.2} s");
    // If each chunk of 16 KiB had to wait for the one before, it were 48 s.
    assert!(seconds < 10.0, "it waits for each chunk: {seconds} s");
    let traffic = echo.proxy.traffic();
    assert_eq!((traffic.connections, traffic.to_server, traffic.to_client), (3, 24_000_000, 24_000_000));
}

async fn futures_join(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_way_takes_its_time_for_all_connections_together() {
    let echo = echo().await;
    echo.proxy.change(|link| link.to_client.bytes_per_second = Some(1_000_000));
    let begun = Instant::now();
    let streams = (0..2).map(async |_| {
        let mut stream = echo.connect().await;
        stream.write_all(&vec![7; 200_000]).await.unwrap();
        stream.read_exact(&mut vec![0; 200_000]).await.unwrap();
    });
    futures_join(streams).await;
    let seconds = begun.elapsed().as_secs_f64();
    println!("measured: 400 kB at 1 MB/s in {seconds:.2} s");
    assert!((0.38..1.5).contains(&seconds), "{seconds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_seen_at_both_ends_and_the_next_connection_is_whole() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap()).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let mut server = listener.accept().await.unwrap().0;
    proxy.cut();
    assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let mut server = listener.accept().await.unwrap().0;
    client.write_all(b"hello").await.unwrap();
    assert_eq!(end(&mut server).await, Ok(5));

    proxy.change(|link| link.refused = true);
    assert_eq!(refusal(&proxy).await, ErrorKind::ConnectionReset);
    client.write_all(b"still").await.unwrap();
    assert_eq!(end(&mut server).await, Ok(5), "those that are there stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_resets_whoever_dials() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap()).unwrap();
    drop(listener);
    assert_eq!(refusal(&proxy).await, ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_comes_after_so_many_bytes() {
    let echo = echo().await;
    let mut stream = echo.connect().await;
    echo.proxy.cut_after(100_000);
    let (mut reads, mut writes) = stream.split();
    let mut got = Vec::new();
    let sent = vec![7; 1_000_000];
    let (_, read) = tokio::join!(writes.write_all(&sent), reads.read_to_end(&mut got));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // What was read at once with the last straw may come, too, and what was on its way by then.
    assert!((1..=500_000).contains(&got.len()), "{}", got.len());
    round_trip(&mut echo.connect().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_comes_when_it_is_let_go() {
    let echo = echo().await;
    let mut stream = echo.connect().await;
    echo.proxy.hold(true);
    stream.write_all(b"later").await.unwrap();
    assert!(is_silent(&mut stream).await, "it was not held");
    let mut other = echo.connect().await;
    other.write_all(b"x").await.unwrap();
    assert!(is_silent(&mut other).await, "a new connection is let through");
    // The answer alone is held.
    echo.proxy.change(|link| link.to_server.held = false);
    assert!(is_silent(&mut stream).await, "the answer was not held");
    assert_eq!(echo.proxy.traffic().to_server, 6);
    echo.proxy.hold(false);
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"later");
    assert_eq!(other.read_u8().await.unwrap(), b'x');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_connection_is_never_answered_and_its_client_never_told() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap()).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let mut server = listener.accept().await.unwrap().0;
    proxy.forget();
    assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset), "the server keeps it");
    client.write_all(b"anybody?").await.unwrap();
    assert!(is_silent(&mut client).await, "the client is told");
    assert_eq!(proxy.traffic().to_server, 0);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let mut server = listener.accept().await.unwrap().0;
    client.write_all(b"hello").await.unwrap();
    assert_eq!(end(&mut server).await, Ok(5), "a new one does not work");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_what_is_sent_is_under_way_as_long_as_all_else() {
    let echo = echo().await;
    echo.proxy.distance(Duration::from_millis(100));
    let mut stream = echo.connect().await;
    let begun = Instant::now();
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_is_put_in_the_place_of_another() {
    let echo = echo().await;
    echo.proxy.rewrite("3.6.16", "3.4.24");
    let mut stream = echo.connect().await;
    stream.write_all(b"version 3.6.16, 3.6.1").await.unwrap();
    let mut got = [0; 21];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"version 3.4.24, 3.6.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_stands_still_at_the_point_that_was_asked_for() {
    let (one, other) = (echo().await, echo().await);
    let trap = Trap::default();
    one.proxy.set_trap(&trap);
    other.proxy.set_trap(&trap);
    let (mut near, mut far) = (one.connect().await, other.connect().await);
    // There and back is two chunks.
    trap.set(3);
    round_trip(&mut near).await;
    far.write_all(b"x").await.unwrap();
    timeout(PATIENCE, trap.sprung()).await.unwrap();
    assert_eq!(other.proxy.traffic().to_server, 1);
    near.write_all(b"y").await.unwrap();
    assert!(is_silent(&mut near).await && is_silent(&mut far).await, "it was let through");
    assert_eq!(trap.passed(), 5);
    trap.open();
    assert_eq!((near.read_u8().await.unwrap(), far.read_u8().await.unwrap()), (b'y', b'x'));
    // What is lost while it stands still stays lost, and it can be set again.
    trap.set(0);
    far.write_all(b"z").await.unwrap();
    timeout(PATIENCE, trap.sprung()).await.unwrap();
    other.proxy.cut();
    trap.open();
    assert_eq!(end(&mut far).await, Err(ErrorKind::ConnectionReset));
    round_trip(&mut near).await;
}
