//! Two clusters, each behind proxies.

use std::time::Duration;

use etcd_client::Client;

use crate::etcd::{Etcd, Settings};
use crate::proxy::{Link, Proxy, Traffic, Trap};

/// A cluster with a proxy before each member. Tests themselves speak to it without them.
pub struct Side {
    /// The cluster.
    pub etcd: Etcd,
    /// One before each member, in their order.
    pub proxies: Vec<Proxy>,
}

/// Source and target.
pub struct Pair {
    /// What is copied.
    pub source: Side,
    /// What it is copied into.
    pub target: Side,
}

impl Pair {
    /// A trap for everything between a mirror and either side.
    pub fn trap(&self) -> Trap {
        let trap = Trap::default();
        for side in [&self.source, &self.target] {
            side.proxies.iter().for_each(|proxy| proxy.set_trap(&trap));
        }
        trap
    }

    /// Starts both at once.
    pub async fn start(source: Settings, target: Settings) -> Self {
        let (source, target) = tokio::join!(Side::start(source), Side::start(target));
        Self { source, target }
    }

    /// Two single members of one minor, with etcd's defaults.
    pub async fn of(minor: &'static str) -> Self {
        Self::start(Settings::of(minor), Settings::of(minor)).await
    }
}

impl Side {
    /// Starts a cluster and its proxies, without any distance yet.
    pub async fn start(settings: Settings) -> Self {
        let etcd = Etcd::start(settings).await;
        let proxies = (0..etcd.size()).map(|member| Proxy::to(etcd.address(member)).unwrap()).collect();
        Self { etcd, proxies }
    }

    /// Where a mirror dials: the proxies, as a flag takes them.
    pub fn endpoints(&self) -> String {
        let urls = self.proxies.iter().map(|proxy| self.etcd.url(proxy.address()));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A client of the first member, without a proxy.
    pub async fn client(&self) -> Client {
        self.etcd.client().await
    }

    /// Changes what the way to every member is like.
    pub fn change(&self, change: impl Fn(&mut Link)) {
        self.proxies.iter().for_each(|proxy| proxy.change(&change));
    }

    /// A distance to every member.
    pub fn distance(&self, round_trip: Duration) {
        self.proxies.iter().for_each(|proxy| proxy.distance(round_trip));
    }

    /// Nothing arrives in either direction.
    pub fn hold(&self, held: bool) {
        self.proxies.iter().for_each(|proxy| proxy.hold(held));
    }

    /// Resets every connection.
    pub fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    /// Makes every connection half-open.
    pub fn forget(&self) {
        self.proxies.iter().for_each(Proxy::forget);
    }

    /// What has passed all proxies.
    pub fn traffic(&self) -> Traffic {
        let none = Traffic { connections: 0, to_server: 0, to_client: 0 };
        self.proxies.iter().map(Proxy::traffic).fold(none, |all, one| Traffic {
            connections: all.connections + one.connections,
            to_server: all.to_server + one.to_server,
            to_client: all.to_client + one.to_client,
        })
    }
}
