//! What the guest has asked its resolver, so that only an answer to that is believed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::dns::{self, Answer};
use crate::frame::Udp;

/// As many questions wait for their answers; the latest count.
const MAX: usize = 256;
/// How long.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Query {
    id: u16,
    port: u16,
    name: String,
    end: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Queries(VecDeque<Query>);

impl Queries {
    /// The guest asks.
    pub(super) fn asked(&mut self, udp: &Udp<'_>, now: Instant) {
        let Some(question) = dns::read_question(udp.data) else {
            return;
        };
        self.0.truncate(MAX - 1);
        self.0.push_front(Query {
            id: question.id,
            port: udp.source,
            name: question.name,
            end: now + PATIENCE,
        });
    }

    /// The resolver answers: what, if it was asked. Each question has one answer.
    pub(super) fn answered(&mut self, udp: &Udp<'_>, now: Instant) -> Option<Answer> {
        let answer = dns::read_answer(udp.data)?;
        let at = self.0.iter().position(|query| {
            query.end > now
                && (query.id, query.port) == (answer.id, udp.destination)
                && query.name == answer.name
        })?;
        self.0.remove(at);
        Some(answer)
    }
}
