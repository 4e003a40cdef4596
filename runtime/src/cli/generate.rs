//! `ramjet generate DIR`: manual pages and shell completions, from the definitions that the command
//! line itself is made of. For whoever packages it; hidden from the help of everybody else.
//!
//! | in DIR | holds |
//! |---|---|
//! | `man1/` | `ramjet.1`, and one page for each command |
//! | `completions/` | `ramjet` (bash), `ramjet.fish`, `_ramjet` (zsh) |

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::exit::{Exit, Failure};

pub(super) fn run(folder: &Path) -> Result<Exit, Failure> {
    let (pages, completions) = (folder.join("man1"), folder.join("completions"));
    let failed = |error: std::io::Error| {
        Failure::environment(format!("generate: {}: {error}", folder.display()))
    };
    for folder in [&pages, &completions] {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    clap_mangen::generate_to(Cli::command(), &pages).map_err(failed)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let path = clap_complete::generate_to(shell, &mut Cli::command(), "ramjet", &completions)
            .map_err(failed)?;
        if shell == Shell::Bash {
            // Under the command's own name bash finds it when it is first wanted.
            std::fs::rename(path, completions.join("ramjet")).map_err(failed)?;
        }
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_and_a_completion_for_each_shell() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(run(folder.path()), Ok(Exit::Ok));
        let read = |name: &str| {
            std::fs::read_to_string(folder.path().join(name))
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        for command in Cli::command().get_subcommands() {
            if command.is_hide_set() {
                continue;
            }
            let page = read(&format!("man1/ramjet-{}.1", command.get_name()));
            assert!(page.contains(".SH OPTIONS"), "{}", command.get_name());
        }
        assert!(read("man1/ramjet-node.1").contains("task\\-ready"));
        for name in ["ramjet", "ramjet.fish", "_ramjet"] {
            assert!(read(&format!("completions/{name}")).contains("task-ready"));
        }
    }
}
