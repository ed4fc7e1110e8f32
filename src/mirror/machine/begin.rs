//! The beginning: what both sides say of themselves is judged, and the target is taken over in one transaction.

use super::source::{floor, undercut};
use super::{Asked, Command, Link, Machine, Mode, Own, Sample, SeenSite, Stage, Stop, Why};
use crate::etcd::ClusterId;
use crate::mirror::assembler::Assembler;
use crate::mirror::checkpoint::{
    Area, Checkpoint, Identity, Owner, Position, Role, Scan, Site, SiteRole, Unreadable, digest,
};
use crate::mirror::config::{Config, claims_key};
use crate::mirror::resync::owned_after;
use crate::mirror::text::shown;
use crate::mirror::transaction::{Answer, Guard, Lease, Node, Stored, Transaction};

/// Hex digits of a plan: enough that no other is permitted by chance, few enough to type.
const PLAN_DIGITS: usize = 12;

/// The term of a pair before its first switch.
const FIRST_TERM: u64 = 1;

impl Machine {
    /// The target's keys, before anything else.
    pub(super) fn look(&mut self, own: Own) {
        match self.judged(&own) {
            Ok(checkpoint) => {
                self.stored = checkpoint;
                self.own = own;
            }
            Err(stop) => self.stop(*stop),
        }
    }

    fn judged(&self, own: &Own) -> Result<Option<(Checkpoint, Vec<u8>)>, Box<Stop>> {
        let owner = self.parsed("owner", own.owner.as_ref(), Owner::parse)?;
        if owner.as_ref().is_some_and(|owner| owner.role == Role::Promoted) {
            return Err(Box::new(Stop::Promoted));
        }
        let checkpoint = self.parsed("checkpoint", own.checkpoint.as_ref(), Checkpoint::parse)?;
        // Both are made in one transaction.
        let asked = self.settings.resync;
        if (owner.is_some() || (self.settings.ran && !asked)) && checkpoint.is_none() {
            return Err(Box::new(Stop::CheckpointLost));
        }
        self.parsed("site", own.site.as_ref(), Site::parse)?;
        let value = own.checkpoint.as_ref().map(|stored| stored.value.clone()).unwrap_or_default();
        Ok(checkpoint.map(|checkpoint| (checkpoint, value)))
    }

    fn parsed<T>(
        &self,
        name: &str,
        stored: Option<&Stored>,
        parse: impl Fn(&[u8]) -> Result<T, Unreadable>,
    ) -> Result<Option<T>, Box<Stop>> {
        let read = stored.map(|stored| parse(&stored.value)).transpose();
        read.map_err(|problem| {
            Box::new(Stop::Unreadable {
                key: shown(&self.settings.id.key(name)),
                problem: problem.to_string(),
            })
        })
    }

    /// Both sides are known.
    pub(super) fn begin(&mut self, sample: Sample) {
        let stored = self.stored.as_ref().map(|(checkpoint, _)| checkpoint);
        let seen = sample.identity.cluster;
        if seen.0 == self.own.cluster {
            return self.stop(Stop::SameCluster(seen));
        }
        if let Some(problem) = self.site_problem(&sample) {
            return self.stop(Stop::Site(problem));
        }
        if let Some(stop) = self.circle(&sample) {
            return self.stop(stop);
        }
        if let Some(active) = self.settings.active.clone()
            && sample.site == SeenSite::Absent
            && self.own.site.is_none()
        {
            let site = first_site(SiteRole::Active, ClusterId(self.own.cluster), active);
            // Nothing else is asked of the source until that is answered.
            self.link = Link::Up;
            return self.commands.push(Command::WriteSite(site.text()));
        }
        let other = stored.and_then(|stored| undercut(floor(stored), &sample));
        self.sample = Some(sample);
        self.link = Link::Up;
        if self.settings.mode == Mode::DryRun {
            return self.count(Why::DryRun);
        }
        match other {
            Some(why) if !self.approved() => self.count(why),
            Some(_) => self.take_over(seen),
            None => {
                self.take_over(seen);
                self.watch_meanwhile();
            }
        }
    }

    /// Both `site` keys must allow this direction; where neither side has one, it is a plain mirror.
    pub(super) fn site_problem(&self, sample: &Sample) -> Option<String> {
        let target = self.own.site.as_ref().and_then(|stored| Site::parse(&stored.value).ok());
        let source = match &sample.site {
            SeenSite::Value(value) => match Site::parse(value) {
                Ok(site) => Some(site),
                Err(problem) => {
                    return Some(format!("the source's key `site` is not as it was written: {problem}"));
                }
            },
            SeenSite::Absent | SeenSite::Unreadable => None,
        };
        // The source's is written first, and the target's with the first checkpoint.
        let begun = self.settings.active.is_some()
            && target.is_none()
            && source.as_ref().is_some_and(|source| self.is_begun(source));
        let source = source.filter(|_| !begun);
        site_problem(source.as_ref(), target.as_ref(), sample.site == SeenSite::Unreadable)
    }

    /// Whether a source's `site` is that of a pair with this target, and there was no switch yet.
    fn is_begun(&self, source: &Site) -> bool {
        source.role == SiteRole::Active
            && source.term == FIRST_TERM
            && source.peer == ClusterId(self.own.cluster).to_string()
    }

    /// Both sides have a key `site` by now: they are looked at again.
    pub(super) fn on_sited(&mut self) {
        if self.stage == Stage::Looking {
            self.link = Link::Down;
        }
    }

    fn approved(&self) -> bool {
        self.settings.approved.as_ref() == Some(&self.plan())
    }

    /// What a person permits: a scan from this source, of this configuration, onto this state of the target.
    pub(super) fn plan(&self) -> String {
        let source = self.sample.as_ref().map_or(ClusterId(0), |sample| sample.identity.cluster);
        let began = |stored: &Checkpoint| stored.position.scan().map_or(stored.counter, |scan| scan.began);
        let began = self.stored.as_ref().map_or(0, |(stored, _)| began(stored));
        let config = serde_json::to_string(&self.settings.config).unwrap_or_default();
        digest(&format!("{source} {began} {config}"), PLAN_DIGITS)
    }

    /// One transaction: nobody else has become the owner meanwhile, and no other mirror has claimed a range.
    fn take_over(&mut self, source: ClusterId) {
        let claims = match self.claims() {
            Ok(claims) => claims,
            Err(stop) => return self.stop(*stop),
        };
        let modified = |stored: &Option<Stored>| stored.as_ref().map_or(0, |stored| stored.modified);
        let (owner, checkpoint) = (self.settings.id.key("owner"), self.settings.id.key("checkpoint"));
        let put = |key: &[u8], value: Vec<u8>| Node::Put { key: key.to_vec(), value, lease: Lease::None };
        let mut then = vec![put(&owner, self.owner.clone())];
        let mut when = vec![
            Guard::Modified(owner, modified(&self.own.owner)),
            Guard::Modified(claims_key(), modified(&self.own.claims)),
        ];
        if let Some(claims) = claims {
            then.push(put(&claims_key(), claims.clone()));
            // If it is not done, the keys are read again; if it is, its answer says when.
            self.own.claims = Some(Stored { value: claims, modified: 0 });
        }
        if self.stored.is_none() {
            when.push(Guard::Created(checkpoint.clone(), 0));
            then.push(put(&checkpoint, self.first_checkpoint().text()));
        }
        if let (Some(active), None) = (self.settings.active.clone(), &self.own.site) {
            let key = self.settings.id.key("site");
            let site = first_site(SiteRole::Follower, source, active).text();
            when.push(Guard::Created(key.clone(), 0));
            then.push(put(&key, site.clone()));
            // If it is not done, the keys are read again.
            self.own.site = Some(Stored { value: site, modified: 0 });
        }
        then.push(Node::Get(checkpoint));
        self.stage = Stage::Taking;
        self.ask(Asked::Take, Command::Commit(Transaction { when, then, otherwise: Vec::new() }));
    }

    /// Nothing at the source has to wait until a distant target has answered, if copying goes on where it ended: it is
    /// watched from there, and what comes is kept. [`Self::run_from`] drops that if the target says another position.
    fn watch_meanwhile(&mut self) {
        let Some((stored, _)) = self.stored.as_ref().filter(|_| self.stage == Stage::Taking) else { return };
        let goes_on = stored.config == self.settings.config && !self.settings.resync;
        if goes_on && matches!(stored.position, Position::Stream { .. }) {
            self.position = stored.position.clone();
            self.assembler = Assembler::new(1, self.position.known());
            self.open();
        }
    }

    /// What was watched meanwhile is of no use.
    fn forget_watch(&mut self) {
        self.watch += 1;
        self.link = Link::Down;
        self.compacted = false;
        self.drop_waiting();
    }

    /// The target is not taken over: look again.
    pub(super) fn look_again(&mut self) {
        self.stage = Stage::Looking;
        self.forget_watch();
    }

    fn first_checkpoint(&self) -> Checkpoint {
        let source = self.sample.as_ref().map(|sample| sample.identity);
        Checkpoint {
            counter: 1,
            position: Position::First(Scan::new(1)),
            source: source.unwrap_or(Identity { cluster: ClusterId(0), term: 0, applied: 0 }),
            config: self.settings.config.clone(),
            policy: self.policy,
            looked: 0,
        }
    }

    pub(super) fn on_taken(&mut self, answer: &Answer) {
        let read = answer.read().into_iter().next().flatten();
        let Some(stored) = read.filter(|_| answer.succeeded) else {
            // Somebody was faster.
            self.look_again();
            self.own.cluster = 0;
            return self.ask(Asked::Own, Command::ReadOwn);
        };
        if let Some(claims) = self.own.claims.as_mut().filter(|claims| claims.modified == 0) {
            claims.modified = answer.revision;
        }
        match Checkpoint::parse(&stored.value) {
            Ok(checkpoint) => self.run_from(checkpoint, stored, answer.revision),
            Err(problem) => {
                let key = shown(&self.settings.id.key("checkpoint"));
                self.stop(Stop::Unreadable { key, problem: problem.to_string() });
            }
        }
    }

    /// Goes on from a checkpoint, at a revision of the target.
    pub(super) fn run_from(&mut self, checkpoint: Checkpoint, stored: Stored, revision: i64) {
        // Before a checkpoint that says so, nobody looked.
        self.foreign.begin(if checkpoint.looked > 0 { checkpoint.looked } else { revision }, revision);
        let other = self.sample.as_ref().and_then(|sample| undercut(floor(&checkpoint), sample));
        self.policy = self.settings.policy.unwrap_or(checkpoint.policy);
        let changed = checkpoint.config != self.settings.config;
        let (old, position) = (checkpoint.config.clone(), checkpoint.position.clone());
        let counter = checkpoint.counter;
        let is_as_seen = self.stored.as_ref().is_some_and(|(_, value)| *value == stored.value);
        let goes_on = self.link == Link::Watching && is_as_seen;
        if !goes_on {
            // The first probe may be old by now.
            self.forget_watch();
        }
        self.stored = Some((checkpoint, stored.value));
        self.position = position;
        // Taken before the position moves: a plan names the checkpoint that was shown.
        let approved = self.approved();
        if let Some(why) = other.clone().filter(|_| !approved) {
            return self.count(why);
        }
        self.stage = Stage::Running;
        // What the last transaction before us added, and its cursor does not say so.
        if let Position::First(scan) | Position::Resync(scan) = &mut self.position
            && !scan.written.contains(&stored.modified)
        {
            scan.written.push(stored.modified);
        }
        if changed || other.is_some() || self.settings.resync {
            let why = match (&other, changed) {
                (Some(_), _) => "another source, or an older one, was approved",
                (None, true) => "mappings, patterns or leases were changed",
                (None, false) => "it was asked for",
            };
            self.scan_anew(&old, counter + 1, why);
        }
        self.begin_with_leases();
        if approved && let Position::First(scan) | Position::Resync(scan) = &mut self.position {
            scan.approved = true;
        }
        if self.settings.mode == Mode::Once {
            self.goal = self.sample.as_ref().map(|sample| sample.head);
        }
        if !goes_on {
            let known = self.position.known();
            self.assembler = Assembler::new(1, known);
            // What a set back source has lost is no floor once that is permitted.
            self.base = if other.is_some() { 0 } else { known };
            self.elsewhere = false;
        }
    }

    /// Begins a scan under the present configuration; `old` is the one that the position speaks of.
    pub(super) fn scan_anew(&mut self, old: &Config, began: u64, why: &'static str) {
        self.stats.scans += 1;
        self.scanning = (why, self.stats);
        self.scan.forget();
        self.foreign.scan_begins();
        self.drop_waiting();
        self.position = match &self.position {
            Position::Stream { .. } => {
                let owned = vec![Area { config: old.clone(), below: None }];
                Position::Resync(Scan { owned, ..Scan::new(began) })
            }
            Position::First(scan) => Position::First(again(scan, old)),
            Position::Resync(scan) => Position::Resync(again(scan, old)),
        };
    }

    /// Reads both sides without writing, to stop with what was found.
    pub(super) fn count(&mut self, why: Why) {
        // Differences of a scan's page are counted from that page on; otherwise from the beginning.
        if !matches!(why, Why::TargetDiffers | Why::PruneGuard) {
            self.counts = super::Counts::default();
            self.scan.forget();
            self.position = match &self.position {
                Position::Stream { .. } => Position::Resync(Scan::new(0)),
                Position::First(_) | Position::Resync(_) => Position::First(Scan::new(0)),
            };
        }
        self.stage = Stage::Counting(why);
    }
}

/// What a side of a pair is before the first switch.
fn first_site(role: SiteRole, peer: ClusterId, handled_active: String) -> Site {
    Site { term: FIRST_TERM, role, peer: peer.to_string(), handled_active }
}

/// The same scan from the beginning.
fn again(scan: &Scan, config: &Config) -> Scan {
    Scan { owned: owned_after(scan, config), cursor: None, revision: 0, ..scan.clone() }
}

fn site_problem(source: Option<&Site>, target: Option<&Site>, unreadable: bool) -> Option<String> {
    match (source, target) {
        (Some(source), Some(target)) if source.term != target.term => Some(format!(
            "the source's key `site` is of term {} and the target's of term {}: a switch has not ended, or one side was \
             restored. Nothing is copied until both agree",
            source.term, target.term
        )),
        (_, Some(Site { role: SiteRole::Active, term, .. })) => Some(format!(
            "the target is the active site since term {term}: it is written to directly. To mirror the other way, exchange \
             --source and --target"
        )),
        (Some(Site { role: SiteRole::Follower, term, .. }), _) => Some(format!(
            "the source is a follower since term {term}: writes go to the other site. To mirror the other way, exchange \
             --source and --target"
        )),
        (None, Some(target)) if unreadable => Some(format!(
            "the target follows in term {}, and the user's role may not read the source's key `site`; grant it to read \
             /__quorate/mirror/",
            target.term
        )),
        (None, Some(target)) => Some(format!(
            "the target follows in term {}, and the source has no key `site`: it is another cluster than the one of the \
             switch, or was restored",
            target.term
        )),
        (Some(source), None) => Some(format!(
            "the source is the active site of term {}, and the target has no key `site`: it is another cluster than the \
             follower, or was restored",
            source.term
        )),
        (None, None) | (Some(_), Some(_)) => None,
    }
}
