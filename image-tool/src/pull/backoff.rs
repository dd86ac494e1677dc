//! When to ask a registry again, and when to give up.

use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap};

use super::error::PullError;

/// How often one request is made before it has failed.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Nobody watches a progress line for longer; a registry that asks for more is left alone.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Counts tries and waits between them.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Waits before the next try: as long as the registry `asked` for, or twice as long as last
    /// time. Gives the error when there should be no next try.
    pub async fn wait(
        &mut self,
        asked: Option<Duration>,
        error: impl FnOnce() -> PullError,
    ) -> Result<(), PullError> {
        self.failures += 1;
        let wait = asked.unwrap_or(FIRST_WAIT * (1 << self.failures.min(8)) / 2);
        if self.failures >= TRIES || wait > LONGEST_WAIT {
            return Err(error());
        }
        let error = error();
        if matches!(
            error,
            PullError::Unreachable { .. } | PullError::Certificate { .. }
        ) {
            return Err(error);
        }
        log::info!("{error}; next try in {wait:?}");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// There was success in between.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// How long a registry asks to wait, in seconds or until a date.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn a_registry_may_name_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let asked = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now)
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            asked("Sun, 06 Nov 1994 08:50:07 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("soon"), None);
    }
}
