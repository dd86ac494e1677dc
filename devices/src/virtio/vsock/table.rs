//! All connections of a device.

#![deny(clippy::indexing_slicing)]

use std::collections::HashMap;

use super::connection::{Connection, Key};
use super::credit::ReceiveCredit;
use super::{CREDIT_LEAST, CREDIT_MOST, CREDIT_POOL, MAX_CONNECTIONS};

/// First port that connections of the host's own come from, far from those that anybody listens
/// to.
const FIRST_PORT: u32 = 1 << 30;

/// The part of the pool that one connection may take: while there are few, each has plenty; all
/// together have a bound.
const POOL_PARTS: u32 = 8;

/// Connections by slot, and those that the guest knows of by their ports.
pub(super) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    // Its keys are the guest's choice; the standard hasher is made for that.
    by_key: HashMap<Key, u32>,
    /// Bytes of credit that are left beyond the least that each has.
    pool: u32,
    next_port: u32,
}

impl Table {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            pool: CREDIT_POOL,
            next_port: FIRST_PORT,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= MAX_CONNECTIONS
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// Puts a connection into a slot; None, and the connection is dropped, if all are taken.
    pub fn insert(&mut self, connection: Connection) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let slot = if let Some(slot) = self.free.pop() {
            *self.slots.get_mut(slot as usize)? = Some(connection);
            slot
        } else {
            self.slots.push(Some(connection));
            self.slots.len() as u32 - 1 // less than MAX_CONNECTIONS
        };
        Some(slot)
    }

    /// Lets the guest know the connection in `slot` by `key`, and send ahead what there is for it.
    pub fn name(&mut self, slot: u32, key: Key) {
        let credit = (self.pool / POOL_PARTS).clamp(CREDIT_LEAST, CREDIT_MOST);
        let pooled = (credit - CREDIT_LEAST).min(self.pool);
        let Some(connection) = self.get_mut(slot) else {
            return;
        };
        connection.key = Some(key);
        connection.pooled = pooled;
        connection.receive = ReceiveCredit::new(CREDIT_LEAST + pooled);
        self.pool -= pooled;
        self.by_key.insert(key, slot);
    }

    /// The guest does not know the connection any more.
    pub fn forget(&mut self, slot: u32) {
        if let Some(key) = self.get_mut(slot).and_then(|it| it.key.take()) {
            self.by_key.remove(&key);
        }
    }

    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        let connection = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.pool += connection.pooled;
        if let Some(key) = connection.key {
            self.by_key.remove(&key);
        }
        Some(connection)
    }

    /// Slots that are taken.
    pub fn taken(&self) -> Vec<u32> {
        let slots = (0..).zip(&self.slots);
        slots
            .filter_map(|(slot, it)| it.as_ref().map(|_| slot))
            .collect()
    }

    /// Ports for a connection to `guest_port` that nobody uses. A port that was just used is the
    /// last one to be used again.
    pub fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key {
                host_port: self.next_port,
                guest_port,
            };
            self.next_port = match self.next_port.checked_add(1) {
                // The last number means 'any port'.
                None | Some(u32::MAX) => FIRST_PORT,
                Some(next) => next,
            };
            // There are fewer connections than ports.
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }
}
