//! A TCP proxy on loopback that is the distance to one server, and what goes wrong on the way.
//!
//! It has a thread and a runtime of its own, so that it is as far from here when whoever uses it is busy. TCP loses
//! nothing in the middle of a connection, and neither does this: what is held goes on when it is let go. A connection
//! ends as others do (`FIN` is delayed like all else), by [`Proxy::cut`] (`RST` to both ends) or never, after
//! [`Proxy::forget`].

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::timer::Timer;

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Chunks under way in one direction of a connection: 16 MiB, more than a TCP window. When that many are, nothing more
/// is read, and who writes has to wait.
const WINDOW: usize = 1024;
/// Connections of one proxy: far more than any test makes.
const CONNECTIONS: usize = 10_000;
/// A server on loopback answers sooner.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What one direction is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// How long each byte is under way.
    pub delay: Duration,
    /// All connections together; none: no limit.
    pub bytes_per_second: Option<u32>,
    /// Nothing arrives, as if every packet were dropped. What was sent arrives when this ends, as TCP sends it again.
    pub held: bool,
}

/// What both directions are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// From client to server.
    pub to_server: Way,
    /// From server to client.
    pub to_client: Way,
    /// New connections are reset at once.
    pub refused: bool,
}

impl Link {
    /// A distance, half of it each way.
    #[must_use]
    pub fn round_trip(time: Duration) -> Self {
        let way = Way { delay: time / 2, ..Way::default() };
        Self { to_server: way, to_client: way, refused: false }
    }
}

/// What has passed so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes that arrived at the server.
    pub to_server: u64,
    /// Bytes that arrived at the client.
    pub to_client: u64,
}

/// The proxy. It goes with all its connections when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A point at which everything stands still, for all proxies that have it. What is read at once is what one of the ends
/// has written at once, so between two chunks lies every moment at which one can have ended.
#[derive(Clone, Default)]
pub struct Trap(Arc<Spring>);

struct Spring {
    passed: AtomicU64,
    point: watch::Sender<Point>,
}

struct Point {
    /// After so many chunks nothing passes.
    after: u64,
    /// Something stands still.
    sprung: bool,
}

/// What happens to all connections at once.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Cut,
    Forgotten,
}

/// What its connections know.
struct Shared {
    server: SocketAddr,
    link: watch::Sender<Link>,
    fate: watch::Sender<Fate>,
    trap: Mutex<Option<Trap>>,
    connections: AtomicU64,
    to_server: Direction,
    to_client: Direction,
}

/// What all connections have in common in one direction.
struct Direction {
    way: fn(&Link) -> Way,
    passed: AtomicU64,
    /// Bytes until everything is cut; negative: never.
    left: AtomicI64,
    /// When the line is free for the next byte.
    free: Mutex<Instant>,
    rewritten: Mutex<Option<Rewrite>>,
}

/// Words that are put in the place of others.
#[derive(Clone, Copy)]
struct Rewrite {
    from: &'static str,
    to: &'static str,
}

/// Bytes on their way. None at all: the end of what is sent.
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

impl Proxy {
    /// A proxy before that server, at the server's own address under another port: its certificate holds here, too.
    pub fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((server.ip(), 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(server));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("proxy".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, shared) => {}
                        _ = stopped => {}
                    }
                });
            }
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where clients dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the way is like, for all that is read from now on; what is held is let go or stopped at once.
    pub fn change(&self, change: impl FnOnce(&mut Link)) {
        self.shared.link.send_modify(change);
    }

    /// A distance, half of it each way, and nothing else.
    pub fn distance(&self, round_trip: Duration) {
        self.change(|link| *link = Link::round_trip(round_trip));
    }

    /// Nothing arrives in either direction, and nobody is told.
    pub fn hold(&self, held: bool) {
        self.change(|link| {
            link.to_server.held = held;
            link.to_client.held = held;
        });
    }

    /// Resets every connection at both ends; what was on its way is lost. New ones are accepted.
    pub fn cut(&self) {
        self.shared.fate.send_replace(Fate::Cut);
    }

    /// Resets every connection, as soon as so many more bytes have arrived at clients.
    pub fn cut_after(&self, bytes_to_client: u32) {
        self.shared.to_client.left.store(i64::from(bytes_to_client), Ordering::SeqCst);
    }

    /// The server loses every connection, and clients are never told, as if something between them had forgotten them.
    /// What clients send goes nowhere. New ones are accepted.
    pub fn forget(&self) {
        self.shared.fate.send_replace(Fate::Forgotten);
    }

    /// Puts one word in the place of another of the same length, in what comes from the server. Both must be plain in
    /// the stream, as texts in messages without TLS are, and never fall apart between two reads, as in short answers.
    pub fn rewrite(&self, from: &'static str, to: &'static str) {
        assert_eq!(from.len(), to.len(), "lengths of messages are in the stream, too");
        *self.shared.to_client.rewritten.lock().unwrap() = Some(Rewrite { from, to });
    }

    /// From now on all that it delivers is counted there, and stands still when that says so.
    pub fn set_trap(&self, trap: &Trap) {
        *self.shared.trap.lock().unwrap() = Some(trap.clone());
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: number(&self.shared.connections),
            to_server: number(&self.shared.to_server.passed),
            to_client: number(&self.shared.to_client.passed),
        }
    }
}

impl Default for Spring {
    fn default() -> Self {
        let (point, _) = watch::channel(Point { after: u64::MAX, sprung: false });
        Self { passed: AtomicU64::new(0), point }
    }
}

impl Trap {
    /// Counts anew; after so many chunks nothing passes any more.
    pub fn set(&self, after: u64) {
        self.0.passed.store(0, Ordering::SeqCst);
        self.0.point.send_replace(Point { after, sprung: false });
    }

    /// Waits until something stands still.
    pub async fn sprung(&self) {
        // The sender is in this value.
        drop(self.0.point.subscribe().wait_for(|point| point.sprung).await);
    }

    /// Lets go what stands still, and all that comes.
    pub fn open(&self) {
        self.0.point.send_replace(Point { after: u64::MAX, sprung: false });
    }

    /// Chunks since it was set.
    pub fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        let before = self.0.passed.fetch_add(1, Ordering::SeqCst);
        let stops = |point: &mut Point| {
            let stops = before >= point.after;
            point.sprung |= stops;
            stops
        };
        if self.0.point.send_if_modified(stops) {
            // The sender is in this value.
            drop(self.0.point.subscribe().wait_for(|point| before < point.after).await);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Nothing is sent: that this is gone is enough.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a proxy failed; its panic is above");
        }
    }
}

impl Shared {
    fn new(server: SocketAddr) -> Self {
        Self {
            server,
            link: watch::Sender::new(Link::default()),
            fate: watch::Sender::new(Fate::Kept),
            trap: Mutex::default(),
            connections: AtomicU64::new(0),
            to_server: Direction::new(|link| link.to_server),
            to_client: Direction::new(|link| link.to_client),
        }
    }

    fn way(&self, direction: &Direction) -> Way {
        (direction.way)(&self.link.borrow())
    }
}

impl Direction {
    fn new(way: fn(&Link) -> Way) -> Self {
        Self {
            way,
            passed: AtomicU64::new(0),
            left: AtomicI64::new(-1),
            free: Mutex::new(Instant::now()),
            rewritten: Mutex::default(),
        }
    }

    /// When bytes that are sent now arrive.
    fn due(&self, way: Way, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap();
        let begin = (*free).max(Instant::now());
        *free = way.bytes_per_second.map_or(begin, |rate| begin + time_of(bytes, rate));
        *free + way.delay
    }

    /// Counts bytes that have arrived; whether that was the last straw.
    fn arrived(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        let spent = i64::try_from(bytes).unwrap_or(i64::MAX);
        let before = self.left.load(Ordering::SeqCst);
        if before < 0 {
            return false;
        }
        let left = before.saturating_sub(spent);
        self.left.store(left, Ordering::SeqCst);
        left < 0
    }
}

fn time_of(bytes: usize, bytes_per_second: u32) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Duration::from_secs_f64(f64::from(bytes) / f64::from(bytes_per_second))
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    for _ in 0..CONNECTIONS {
        let (client, _) = listener.accept().await.unwrap();
        shared.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(client, shared.clone()));
    }
    panic!("more than {CONNECTIONS} connections");
}

/// One connection, to its end.
async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut fate = shared.fate.subscribe();
    let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(shared.server));
    let refused = shared.link.borrow().refused;
    let server = if refused { None } else { connected.await.ok().and_then(Result::ok) };
    let Some(mut server) = server else {
        return reset(&client);
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let ended = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let forth = pump(client_reads, server_writes, &shared, &shared.to_server);
        let back = pump(server_reads, client_writes, &shared, &shared.to_client);
        tokio::select! {
            passed = async { tokio::try_join!(forth, back) } => Some(passed),
            _ = fate.changed() => None,
        }
    };
    match ended {
        // Both have said all that they had to say.
        Some(Ok(_)) => {}
        // One of them is gone: the other is told as it would be by a kernel.
        Some(Err(_)) => [&client, &server].into_iter().for_each(reset),
        None => {
            reset(&server);
            let forgotten = matches!(*fate.borrow(), Fate::Forgotten);
            if forgotten {
                drop(server);
                swallow(&mut client).await;
            }
            reset(&client);
        }
    }
}

/// The stream's end will be `RST`.
fn reset(stream: &TcpStream) {
    // It may have ended in the meantime.
    drop(stream.set_zero_linger());
}

/// Takes what comes until the client itself gives up.
async fn swallow(client: &mut TcpStream) {
    let mut chunk = vec![0; CHUNK];
    while client.read(&mut chunk).await.is_ok_and(|read| read > 0) {}
}

/// One direction of a connection, until the end of what is sent has arrived.
async fn pump(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    shared: &Shared,
    direction: &Direction,
) -> io::Result<()> {
    let (queue, queued) = mpsc::channel(WINDOW);
    tokio::try_join!(take(from, queue, shared, direction), deliver(to, queued, shared, direction)).map(drop)
}

async fn take(
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Chunk>,
    shared: &Shared,
    direction: &Direction,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.read(&mut buffer).await?;
        let mut bytes = buffer[..read].to_vec();
        if let Some(words) = *direction.rewritten.lock().unwrap() {
            words.apply(&mut bytes);
        }
        let due = direction.due(shared.way(direction), read);
        if queue.send(Chunk { due, bytes }).await.is_err() || read == 0 {
            return Ok(());
        }
    }
}

async fn deliver(
    mut to: impl AsyncWrite + Unpin,
    mut queued: mpsc::Receiver<Chunk>,
    shared: &Shared,
    direction: &Direction,
) -> io::Result<()> {
    let mut timer = Timer::new()?;
    let mut link = shared.link.subscribe();
    while let Some(Chunk { due, bytes }) = queued.recv().await {
        timer.until(due).await?;
        // Fails only when the proxy is gone.
        drop(link.wait_for(|link| !(direction.way)(link).held).await);
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        let trap = shared.trap.lock().unwrap().clone();
        if let Some(trap) = trap {
            trap.pass().await;
        }
        to.write_all(&bytes).await?;
        if direction.arrived(bytes.len()) {
            shared.fate.send_replace(Fate::Cut);
        }
    }
    Ok(())
}

impl Rewrite {
    fn apply(self, bytes: &mut [u8]) {
        let length = self.from.len();
        for start in 0..(bytes.len() + 1).saturating_sub(length) {
            let word = &mut bytes[start..start + length];
            if *word == *self.from.as_bytes() {
                word.copy_from_slice(self.to.as_bytes());
            }
        }
    }
}
