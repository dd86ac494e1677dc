//! What a machine's main process is: an image says something about it, the user something else.

mod attach;
mod env;
mod limit;
mod period;
mod signal;

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Limit, ProcessSpec, Program};
use casita_images::ImageConfig;

use crate::config::MachineConfig;
use crate::control::protocol::{ProcessRequest, ProgramRequest, RequestError};

pub use attach::{Attach, AttachError, Ends, Stdin};
pub use env::{EnvError, read_env_file, resolve_env};
pub use limit::Ulimit;
pub use period::Period;
pub use signal::Signal;

impl MachineConfig {
    /// This machine, with what `image` says where the user says nothing. The result's command is
    /// complete, with its entry point.
    ///
    /// An entry point of the user's takes the image's command away too, as that was meant for the
    /// image's entry point; an empty one takes the image's away.
    #[must_use]
    pub fn with_image(self, image: &ImageConfig) -> Self {
        let own_entrypoint = self.entrypoint.is_some();
        let mut command = match &self.entrypoint {
            Some(program) if program.is_empty() => Vec::new(),
            Some(program) => vec![program.clone()],
            None => image.entrypoint.clone(),
        };
        let arguments = if self.command.is_empty() && !own_entrypoint {
            &image.cmd
        } else {
            &self.command
        };
        command.extend_from_slice(arguments);
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        Self {
            entrypoint: None,
            command,
            env: overlay_env(&image.env, &self.env),
            workdir: self.workdir.or_else(|| given(&image.workdir)),
            user: self.user.or_else(|| given(&image.user)),
            exposed: image.exposed_ports.clone(),
            // An image's signal that does not exist is as none: the image can't be mended here.
            stop_signal: self.stop_signal.or_else(|| {
                let signal = image.stop_signal.as_ref()?;
                signal.parse().ok()
            }),
            ..self
        }
    }

    /// The main process, at a terminal of this size if it has one.
    pub fn main_process(&self, terminal: Option<WindowSize>) -> ProcessSpec {
        let words = self.entrypoint.iter().filter(|program| !program.is_empty());
        let words = words.chain(&self.command);
        ProcessSpec {
            program: Program::Command(words.map(|word| word.clone().into_bytes()).collect()),
            env: with_term(&self.env, terminal),
            workdir: self.workdir.clone().unwrap_or_default().into_bytes(),
            user: self.user.clone().unwrap_or_default(),
            terminal,
            limits: self.limits(),
            group: None,
        }
    }

    /// Refuses a main process that no guest could start.
    ///
    /// # Errors
    /// If a string has a NUL inside, a path is relative, or a variable is not `NAME=value`.
    pub fn check_process(&self) -> Result<(), RequestError> {
        let words = self.entrypoint.iter().chain(&self.command);
        ProcessRequest {
            program: ProgramRequest::Command(words.cloned().collect()),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            ..ProcessRequest::default()
        }
        .check()
    }

    /// The main process's resource limits.
    pub fn limits(&self) -> Vec<Limit> {
        self.ulimit.iter().map(|limit| limit.0).collect()
    }

    /// The signal that asks the main process to end.
    pub fn stop_signal(&self) -> Signal {
        self.stop_signal.unwrap_or(Signal::TERM)
    }

    /// How long it has after that.
    pub fn stop_timeout(&self) -> Period {
        self.stop_timeout.unwrap_or(Period::STOP)
    }
}

/// `env` as bytes, with the kind of terminal that the user sits at, where `env` does not say.
pub fn with_term(env: &[String], terminal: Option<WindowSize>) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = env.iter().map(|line| line.clone().into_bytes()).collect();
    let says = env.iter().any(|variable| variable.starts_with(b"TERM="));
    if let (Some(_), false, Some(term)) = (terminal, says, std::env::var_os("TERM")) {
        env.push([b"TERM=", term.as_encoded_bytes()].concat());
    }
    env
}

/// The variables of `below`, and those of `above` over them.
pub fn overlay_env(below: &[String], above: &[String]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut both: Vec<String> = Vec::with_capacity(below.len() + above.len());
    for variable in below.iter().chain(above) {
        match both.iter_mut().find(|other| name(other) == name(variable)) {
            Some(other) => other.clone_from(variable),
            None => both.push(variable.clone()),
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words("entry -x"),
            cmd: words("serve --all"),
            env: words("PATH=/image/bin LANG=C"),
            workdir: "/srv".to_owned(),
            user: "web".to_owned(),
            stop_signal: Some("SIGQUIT".to_owned()),
            ..ImageConfig::default()
        }
    }

    fn command(entrypoint: Option<&str>, command: &str) -> String {
        let config = MachineConfig {
            entrypoint: entrypoint.map(str::to_owned),
            command: words(command),
            ..MachineConfig::default()
        };
        let merged = config.with_image(&image());
        assert_eq!(merged.entrypoint, None);
        merged.command.join(" ")
    }

    #[test]
    fn the_images_entry_point_goes_before_the_users_command_or_its_own() {
        assert_eq!(command(None, ""), "entry -x serve --all");
        assert_eq!(command(None, "other"), "entry -x other");
    }

    #[test]
    fn an_entry_point_of_the_users_takes_the_images_command_away() {
        assert_eq!(command(Some("sh"), ""), "sh");
        assert_eq!(command(Some("sh"), "-c true"), "sh -c true");
        assert_eq!(command(Some(""), "true"), "true");
        assert_eq!(command(Some(""), ""), "");
    }

    #[test]
    fn the_user_goes_over_the_image() {
        let silent = MachineConfig::default().with_image(&image());
        assert_eq!(silent.workdir.as_deref(), Some("/srv"));
        assert_eq!(silent.user.as_deref(), Some("web"));
        assert_eq!(silent.stop_signal().number(), 3);
        assert_eq!(silent.env, words("PATH=/image/bin LANG=C"));
        let user = MachineConfig {
            workdir: Some("/w".to_owned()),
            user: Some("0".to_owned()),
            stop_signal: Some(Signal::TERM),
            env: words("LANG=de A=b"),
            ..MachineConfig::default()
        };
        let both = user.with_image(&image());
        assert_eq!(both.workdir.as_deref(), Some("/w"));
        assert_eq!(both.user.as_deref(), Some("0"));
        assert_eq!(both.stop_signal(), Signal::TERM);
        assert_eq!(both.env, words("PATH=/image/bin LANG=de A=b"));
    }

    #[test]
    fn an_image_that_says_nothing_changes_nothing() {
        let config = MachineConfig {
            command: words("a b"),
            ..MachineConfig::default()
        };
        assert_eq!(config.clone().with_image(&ImageConfig::default()), config);
    }

    #[test]
    fn the_main_process_has_its_entry_point_without_an_image_too() {
        let config = MachineConfig {
            entrypoint: Some("sh".to_owned()),
            command: words("-c true"),
            ..MachineConfig::default()
        };
        let process = config.main_process(None);
        let words = ["sh", "-c", "true"].map(|word| word.as_bytes().to_vec());
        assert_eq!(process.program, Program::Command(words.to_vec()));
    }
}
