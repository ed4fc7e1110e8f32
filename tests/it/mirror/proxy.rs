//! A way between two processes that can be slow, broken or silent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Chunks on their way: more than fit into any delay of the tests.
const CHUNKS: usize = 4096;

/// How the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Connections made before are those of a way that is gone.
    generation: u32,
    /// In each direction.
    delay: Duration,
    /// Nothing arrives, and nobody is told.
    silent: bool,
}

pub(super) struct Proxy {
    pub(super) url: String,
    state: watch::Sender<State>,
    running: Arc<Mutex<Vec<JoinHandle<()>>>>,
    listening: JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (state, seen) = watch::channel(State { generation: 0, delay: Duration::ZERO, silent: false });
        let running = Arc::new(Mutex::new(Vec::new()));
        let begun = running.clone();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let task = tokio::spawn(join(client, target, seen.clone()));
                begun.lock().unwrap().push(task);
            }
        });
        Self { url, state, running, listening }
    }

    /// There and back.
    pub(super) fn slow(&self, round_trip: Duration) {
        self.state.send_modify(|state| state.delay = round_trip / 2);
    }

    /// As behind a firewall that drops: open connections stay open.
    pub(super) fn silent(&self, silent: bool) {
        self.state.send_modify(|state| state.silent = silent);
    }

    /// New connections are answered; those that are open stay silent for ever.
    pub(super) fn forget(&self) {
        self.state.send_modify(|state| {
            state.generation += 1;
            state.silent = false;
        });
    }

    /// Every connection ends; new ones may be made.
    pub(super) fn cut(&self) {
        for task in self.running.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

async fn join(client: TcpStream, target: SocketAddr, state: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let ((client_read, client_write), (server_read, server_write)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(client_read, server_write, state.clone()) => {}
        () = pass(server_read, client_write, state) => {}
    }
}

/// Passes bytes on, each as late as the way is long, and as many as come meanwhile.
async fn pass(mut from: OwnedReadHalf, to: OwnedWriteHalf, state: watch::Receiver<State>) {
    let generation = state.borrow().generation;
    let (send, sent) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let deliver = deliver(sent, to, state.clone(), generation);
    let take = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + state.borrow().delay;
            if send.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = deliver => {}
        () = take => {}
    }
}

async fn deliver(
    mut sent: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    generation: u32,
) {
    while let Some((due, bytes)) = sent.recv().await {
        tokio::time::sleep_until(due.into()).await;
        if state.wait_for(|state| !state.silent && state.generation == generation).await.is_err()
            || to.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
}
