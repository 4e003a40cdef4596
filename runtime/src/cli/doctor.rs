//! `ramjet doctor`: what this host lacks, what it costs, and the command that mends it.
//!
//! It changes nothing. `--json` prints one array of findings: `id`, `severity`, `what_is`,
//! `better`, `why`, `command`, `undo`. Exit 5 if there is a problem.

use ramjet_tuning::{Finding, Severity};

use super::exit::{Exit, Failure};
use super::output::{Output, Paint};

pub(super) fn run(output: &mut Output) -> Result<Exit, Failure> {
    let findings = ramjet_tuning::report();
    if output.json {
        output.object(&findings)?;
    } else {
        let pages: Vec<String> = findings
            .iter()
            .map(|finding| page(finding, output))
            .collect();
        output.data(&pages.join("\n"))?;
    }
    let problem = findings
        .iter()
        .any(|finding| finding.severity == Severity::Problem);
    Ok(if problem { Exit::Environment } else { Exit::Ok })
}

/// A finding as people read it; one that is fine takes one line.
fn page(finding: &Finding, output: &Output) -> String {
    let (paint, label) = match finding.severity {
        Severity::Ok => (Paint::Good, "ok"),
        Severity::Advice => (Paint::Bold, "advice"),
        Severity::Problem => (Paint::Bad, "problem"),
    };
    let label = output.paint(paint, &format!("{label:<7}"));
    let mut page = format!("{label} {:<18} {}", finding.id, finding.what_is);
    if finding.severity != Severity::Ok {
        let mut line =
            |name: &str, text: &str| page.push_str(&format!("\n        {name:<7} {text}"));
        line("better", &finding.better);
        line("why", finding.why);
        if let Some(command) = &finding.command {
            line("run", command);
        }
        if let Some(undo) = &finding.undo {
            line("undo", undo);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_remedy_unless_all_is_fine() {
        let finding = |severity| Finding {
            id: "rmem-max",
            severity,
            what_is: "212992 bytes".to_owned(),
            better: "8 MiB".to_owned(),
            why: "bursts are dropped",
            command: Some("sysctl -w net.core.rmem_max=8388608".to_owned()),
            undo: None,
        };
        let output = Output::quiet();
        assert_eq!(page(&finding(Severity::Ok), &output).lines().count(), 1);
        let slow = page(&finding(Severity::Advice), &output);
        assert_eq!(
            slow,
            "advice  rmem-max           212992 bytes\n        better  8 MiB\n        why     \
             bursts are dropped\n        run     sysctl -w net.core.rmem_max=8388608"
        );
    }
}
