//! The verbs that people wait for, parsed without the others.
//!
//! Making the options of all verbs takes longer than all that casita does before the guest's first
//! instruction. So a command line that begins with one of these verbs is parsed by a parser that
//! knows only them. Whatever that does not take, be it wrong or a request for help, is parsed again
//! by the whole one, which has the last word.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use super::{Cli, Command, Global, exec, lifecycle, run};

#[derive(Debug, Parser)]
#[command(name = "casita", disable_help_subcommand = true)]
struct Swift {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
    Monitor(lifecycle::MonitorArgs),
}

const VERBS: [&str; 3] = ["run", "exec", "monitor"];

/// The command line in `words`, if it is one of the swift verbs' and nothing is wrong with it.
pub(super) fn parse(words: &[OsString]) -> Option<Cli> {
    let mut words_behind = words.iter().skip(1);
    // Options before the verb have no values.
    let verb = words_behind.find(|word| !word.as_encoded_bytes().starts_with(b"-"))?;
    if !VERBS.iter().any(|name| verb == name) {
        return None;
    }
    let Swift { global, command } = Swift::try_parse_from(words).ok()?;
    let command = match command {
        Verb::Run(args) => Command::Run(args),
        Verb::Exec(args) => Command::Exec(args),
        Verb::Monitor(args) => Command::Monitor(args),
    };
    Some(Cli { global, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(line: &str) -> (Option<String>, Option<String>) {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let text = |cli: Cli| format!("{cli:?}");
        let whole = Cli::try_parse_from(&words).ok().map(text);
        (parse(&words).map(text), whole)
    }

    #[test]
    fn both_parsers_understand_the_same() {
        for line in [
            "casita run",
            "casita run --rm -it debian bash -c ls",
            "casita -v run -m 1G -c 2 -- uname -a",
            "casita --quiet run --name x -v a:/b --verbose debian",
            "casita exec -it web sh -c ls",
            "casita exec -e A=1 web env",
        ] {
            let (swift, whole) = both(line);
            assert!(whole.is_some(), "{line}");
            assert_eq!(swift, whole, "{line}");
        }
    }

    #[test]
    fn help_mistakes_and_other_verbs_are_left_to_the_whole_parser() {
        for line in [
            "casita",
            "casita --help",
            "casita run --help",
            "casita run --dsik 2G",
            "casita ps",
            "casita help run",
            "casita -- run",
        ] {
            assert!(both(line).0.is_none(), "{line}");
        }
    }
}
