//! The proxy against plain sockets, and the etcds with and without it.

mod etcds;
mod proxies;
