//! Taking away: what a later layer replaces, and what whiteouts hide.

use super::{Content, InodeId, Place, Tree};

impl Tree {
    /// A whiteout: hides what lower layers have put at a place. What the present layer has put
    /// there, or below, stays, whichever comes first.
    pub fn whiteout(&mut self, place: &Place<'_>) {
        let Place::Name { parent, name } = *place else {
            return;
        };
        let layer = self.layer;
        let Some(entry) = self.directory(parent).and_then(|it| it.entries.get(name)) else {
            return;
        };
        let (inode, old) = (entry.inode, entry.layer < layer);
        let touched = self
            .directory(inode)
            .is_some_and(|directory| directory.touched == layer);
        if old && !touched {
            if let Some(directory) = self.directory_mut(parent) {
                directory.entries.remove(name);
            }
            self.unlink(inode);
        } else {
            self.opaque(inode);
        }
    }

    /// An opaque directory: hides what lower layers have put below it. Each directory is cleared at
    /// most once in a layer, so a layer full of markers takes no longer than one with few.
    pub fn opaque(&mut self, directory: InodeId) {
        let layer = self.layer;
        let mut todo = vec![directory];
        while let Some(id) = todo.pop() {
            let Some(directory) = self.directory(id).filter(|it| it.opaque != layer) else {
                continue;
            };
            let mut hidden = Vec::new();
            for (name, entry) in &directory.entries {
                let below = self.directory(entry.inode);
                let touched = below.is_some_and(|directory| directory.touched == layer);
                if entry.layer < layer && !touched {
                    hidden.push((name.clone(), entry.inode));
                } else if below.is_some() {
                    todo.push(entry.inode);
                }
            }
            let directory = self.directory_mut(id).expect("it was one above");
            directory.opaque = layer;
            for (name, _) in &hidden {
                directory.entries.remove(name);
            }
            for (_, inode) in hidden {
                self.unlink(inode);
            }
        }
    }

    /// A name of this inode is gone. With its last one the inode goes, and all that is below it.
    pub(super) fn unlink(&mut self, id: InodeId) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let inode = self.inode_mut(id);
            inode.links -= 1;
            if inode.links > 0 {
                continue;
            }
            let Some(inode) = self.inodes[id.index()].take() else {
                continue;
            };
            self.free.push(id);
            match inode.content {
                Content::Directory(directory) => {
                    todo.extend(directory.entries.into_values().map(|entry| entry.inode));
                }
                Content::File(data) if data.size > 0 => self.dead.push(data),
                _ => (),
            }
        }
    }
}
