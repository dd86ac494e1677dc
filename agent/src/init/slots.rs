//! What the agent waits for beside its host: a table whose places have names that are not used
//! twice, so that an event of something that is gone is not taken for one of its successor.

use alloc::vec::Vec;

use rustix::event::epoll::EventData;

/// The name of something in the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    index: u32,
    generation: u32,
}

/// Which of its files an event is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that leads to the host.
    Socket,
    /// The one that leads to a process.
    Local,
}

impl Token {
    /// For the kernel, which gives it back with events.
    pub(crate) fn data(self, side: Side) -> EventData {
        let low = u64::from(self.index) << 1 | u64::from(side == Side::Local);
        EventData::new_u64(u64::from(self.generation) << 32 | low)
    }

    pub(crate) fn from_data(data: u64) -> (Self, Side) {
        let low = data & u64::from(u32::MAX);
        let side = if low & 1 == 1 {
            Side::Local
        } else {
            Side::Socket
        };
        let token = Token {
            index: (low >> 1) as u32,
            generation: (data >> 32) as u32,
        };
        (token, side)
    }
}

struct Place<T> {
    generation: u32,
    content: Option<T>,
}

pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Slots {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, content: T) -> Token {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            place.content = Some(content);
            return Token {
                index,
                generation: place.generation,
            };
        }
        self.places.push(Place {
            generation: 0,
            content: Some(content),
        });
        Token {
            index: self.places.len() as u32 - 1,
            generation: 0,
        }
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        place.content.as_mut()
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        let content = place.content.take()?;
        // The top bit stays clear: with it, it would be a name of the server's own.
        place.generation = place.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(token.index);
        Some(content)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places
            .iter()
            .filter_map(|place| place.content.as_ref())
    }
}
