//! `ramjet resolve`: workers by polo, as in the article.
//!
//! `--json` prints one array of rows: `node`, `address`, `hostname`, `polo`, `task_ready`,
//! `capabilities`. Exit 3 if nobody matches.

use ramjet_proto::market::Filter;
use ramjet_proto::market::message::{Query, WorkerRow};
use ramjet_proto::market::terms::FILTERS_MAX;

use super::access::Access;
use super::args::ResolveArgs;
use super::exit::{Exit, Failure};
use super::output::{Output, table};
use super::settings::{Settings, suggestion};

/// The capability that is a state and no key.
const TASK_READY: &str = "task-ready";

pub(super) fn run(
    args: &ResolveArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let query = query(args)?;
    let workers = Access::open(settings)?.resolve(query)?;
    if output.json {
        output.object(&workers)?;
    } else if !workers.is_empty() {
        let rows: Vec<_> = workers.iter().map(row).collect();
        output.data(&table(&["ADDRESS", "POLO", "SKILLS", "MODEL"], &rows))?;
    }
    if workers.is_empty() {
        output.say("nobody matches; try fewer filters, or a lower --min-polo");
        return Ok(Exit::Unmatched);
    }
    Ok(Exit::Ok)
}

fn query(args: &ResolveArgs) -> Result<Query, Failure> {
    let mut filters = args.filter.clone();
    let mut task_ready = false;
    for capability in &args.capability {
        match capability.parse::<Filter>() {
            Ok(filter) => filters.push(filter),
            Err(_) if capability == TASK_READY => task_ready = true,
            Err(_) => {
                let meant = suggestion(capability, [TASK_READY].into_iter());
                return Err(Failure::usage(format!(
                    "--capability: {capability:?} is neither task-ready nor K=V, as in \
                     model=llama-3-70b{meant}"
                )));
            }
        }
    }
    if filters.len() > FILTERS_MAX {
        return Err(Failure::usage(format!(
            "--filter: {} of them, at most {FILTERS_MAX}; leave some away",
            filters.len()
        )));
    }
    Ok(Query {
        task_ready,
        filters,
        min_polo: args.min_polo,
        limit: args.limit,
    })
}

fn row(worker: &WorkerRow) -> Vec<String> {
    let capability = |key: &str| worker.capabilities.get(key).cloned().unwrap_or_default();
    vec![
        worker.address.clone(),
        worker.polo.to_string(),
        capability("skills"),
        capability("model"),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn parse(line: &str) -> Result<Query, Failure> {
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("valid");
        let Command::Resolve(args) = cli.command else {
            panic!("resolve")
        };
        query(&args)
    }

    #[test]
    fn a_query_holds_what_was_asked_for() {
        let query = parse(
            "ramjet resolve --capability task-ready --capability model=m --filter skills=echo \
             --min-polo -2 --limit 5",
        )
        .expect("valid");
        assert!(query.task_ready);
        assert_eq!((query.min_polo, query.limit), (Some(-2), 5));
        let filters: Vec<_> = query
            .filters
            .iter()
            .map(|f| format!("{}={}", f.key, f.value))
            .collect();
        assert_eq!(filters, ["skills=echo", "model=m"]);
    }

    #[test]
    fn an_unknown_capability_and_too_many_filters_are_refused() {
        let error = parse("ramjet resolve --capability task_ready").expect_err("unknown");
        assert!(
            error.message.ends_with("did you mean \"task-ready\"?"),
            "{}",
            error.message
        );
        let many = format!("ramjet resolve{}", " --filter a=b".repeat(FILTERS_MAX + 1));
        assert!(
            parse(&many)
                .expect_err("too many")
                .message
                .contains("17 of them, at most 16")
        );
    }
}
