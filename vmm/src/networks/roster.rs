//! Who else is on the network, as the folder says: read again when something in it has changed.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use casita_net::Mac;
use rustix::fs::inotify;

use super::Outside;
use super::members::{self, Member, Membership};

/// The other members.
#[derive(Debug)]
pub(super) struct Roster {
    outside: Arc<dyn Outside>,
    own: Member,
    /// Tells of changes in the folder.
    watch: OwnedFd,
    stale: bool,
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    member: Arc<Member>,
    lock: File,
}

impl Roster {
    /// The members in `folder` beside that of `membership`.
    pub(super) fn open(folder: &Path, membership: &Membership) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let changes = inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&watch, folder, changes)?;
        Ok(Self {
            outside: membership.outside().clone(),
            own: membership.member().clone(),
            watch,
            stale: true,
            known: Vec::new(),
        })
    }

    /// Readable when the folder has changed.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Takes the changes off the watch. Whoever looks next reads the folder.
    pub(super) fn notice(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(&self.watch, &mut buffer);
        while changes.next().is_ok() {
            self.stale = true;
        }
    }

    /// The one that has `mac`, as far as is known: nobody asks the system for each frame. It may be
    /// gone.
    pub(super) fn by_mac(&mut self, mac: Mac) -> Option<&Arc<Member>> {
        if self.stale {
            self.read();
        }
        let mut known = self.known.iter();
        known
            .find(|known| known.member.mac() == mac)
            .map(|known| &known.member)
    }

    /// The member that has `address` and lives.
    pub(super) fn by_address(&mut self, address: IpAddr) -> Option<&Arc<Member>> {
        self.living(move |member| member.has(address)).next()
    }

    /// The member with this ID that lives.
    pub(super) fn by_id(&mut self, id: &str) -> Option<&Arc<Member>> {
        let id = id.to_owned();
        self.living(move |member| member.id == id).next()
    }

    /// All that live.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &Arc<Member>> {
        self.living(|_| true)
    }

    fn living<'a>(
        &'a mut self,
        wanted: impl Fn(&Member) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Arc<Member>> {
        // The event may not have been taken off yet.
        self.notice();
        if self.stale {
            self.read();
        }
        let known = self.known.iter();
        known
            .filter(move |known| wanted(&known.member) && members::lives(&known.lock))
            .map(|known| &known.member)
    }

    /// Reads the folder. Nobody takes an address that another has, or ours.
    fn read(&mut self) {
        self.stale = false;
        let before = std::mem::take(&mut self.known);
        let ids = match self.outside.ids() {
            Ok(ids) => ids,
            Err(error) => {
                log::warn!("the network's members can't be told: {error}");
                self.known = before;
                return;
            }
        };
        let others = ids.into_iter().filter(|id| *id != self.own.id);
        let mut found: Vec<Known> = others
            .filter_map(|id| self.outside.member(&id).ok())
            .map(|(member, lock)| Known {
                member: Arc::new(member),
                lock,
            })
            .collect();
        // Who was there before goes first.
        found.sort_by_key(|new| {
            !before.iter().any(|old| old.member == new.member) || !members::lives(&new.lock)
        });
        for new in found {
            let clashes = |other: &Member| {
                other.mac == new.member.mac
                    || new
                        .member
                        .addresses()
                        .iter()
                        .any(|address| other.has(*address))
            };
            let taken = clashes(&self.own) || self.known.iter().any(|known| clashes(&known.member));
            if !taken {
                self.known.push(new);
            }
        }
    }
}
