//! Where the log goes, in which form, and what of it is told.
//!
//! | form | is |
//! |---|---|
//! | `text` | lines for people on standard error |
//! | `json` | an object a line on standard error, for collectors |
//! | `journal` | entries with fields and stable message ids, straight to systemd's journal |
//!
//! Invariants: commands that answer a question log text, and warnings only; a service whose standard
//! error is the journal's stream speaks to the journal itself. The filter, and nothing else, may be
//! changed while the process runs.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::exit::Failure;
use super::settings::{self as s, Settings};

/// The field that names an event of [`crate::events`]; people who read lines are spared it.
const MESSAGE_ID: &str = "message_id";

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
    Journal,
}

/// Starts the log of this process. A second start happens only where a test calls twice; the first
/// one stays.
///
/// # Errors
/// A filter or a form that is none, or no journal where it was asked for by name.
pub(super) fn start(settings: &Settings, service: bool) -> Result<Form, Failure> {
    let (filter, handle) = reload::Layer::new(filter(settings, service)?);
    let form = form(settings, service)?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match form {
        Form::Text => registry
            .with(
                lines
                    .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                    .fmt_fields(WithoutIds),
            )
            .try_init(),
        Form::Json => registry
            .with(lines.json().flatten_event(true).boxed())
            .try_init(),
        Form::Journal => {
            let journal = tracing_journald::layer().map_err(|error| {
                Failure::environment(format!(
                    "log-format: the journal cannot be reached: {error}; use text or json"
                ))
            })?;
            // Its own prefix would keep MESSAGE_ID from being what the journal knows by this name.
            registry.with(journal.with_field_prefix(None)).try_init()
        }
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(form)
}

/// Changes what is told, by the settings as they are now.
///
/// # Errors
/// A filter that is none; then the former one stays.
pub(super) fn reload(settings: &Settings) -> Result<(), Failure> {
    let filter = filter(settings, true)?;
    match FILTER.get() {
        Some(handle) => handle
            .reload(filter)
            .map_err(|error| Failure::environment(format!("log: the filter stays: {error}"))),
        None => Ok(()),
    }
}

/// Services tell what they do; commands that answer a question speak when something is wrong.
fn filter(settings: &Settings, service: bool) -> Result<EnvFilter, Failure> {
    let default = if service { "info" } else { "warn" };
    let set = settings.parsed(s::LOG, |text| {
        EnvFilter::try_new(text).map_err(|error| error.to_string())
    })?;
    Ok(set
        .into_iter()
        .next_back()
        .unwrap_or_else(|| EnvFilter::new(default)))
}

fn form(settings: &Settings, service: bool) -> Result<Form, Failure> {
    let forms = [
        ("auto", None),
        ("text", Some(Form::Text)),
        ("json", Some(Form::Json)),
        ("journal", Some(Form::Journal)),
    ];
    let set = settings.choice(s::LOG_FORMAT, &forms)?.flatten();
    Ok(match set {
        Some(form) => form,
        None if service && is_journal() => Form::Journal,
        None => Form::Text,
    })
}

/// Whether standard error is the stream that systemd says leads to the journal.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let file = std::io::stderr().as_fd().try_clone_to_owned();
    let metadata = file.and_then(|file| std::fs::File::from(file).metadata());
    metadata.is_ok_and(|metadata| names(&stream, metadata.dev(), metadata.ino()))
}

/// Whether `$JOURNAL_STREAM`, device and inode with a colon between, names this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream == format!("{device}:{inode}")
}

/// Fields of a line as they usually are, but for the ids of events.
struct WithoutIds;

impl<'writer> FormatFields<'writer> for WithoutIds {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Skipping(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct Skipping<'writer>(DefaultVisitor<'writer>);

impl Visit for Skipping<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != MESSAGE_ID {
            self.0.record_debug(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE_ID {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.record_error(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::super::settings::Layer as Values;
    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn settings(file: &str) -> Settings {
        Settings::resolve(Values::default(), [], Some((Path::new("t.toml"), file))).expect("TOML")
    }

    #[test]
    fn lines_for_people_hold_no_ids() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(WithoutIds);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let error = std::io::Error::other("no");
            tracing::info!(message_id = "abcd", worker = 3, %error, "it ended");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        assert!(text.ends_with("it ended worker=3 error=no\n"), "{text:?}");
    }

    #[test]
    fn a_form_is_chosen_by_name_and_a_wrong_one_is_refused() {
        let json = form(&settings("log-format = 'json'"), true).expect("a form");
        assert_eq!(json, Form::Json);
        let error = form(&settings("log-format = 'jsn'"), true).expect_err("none");
        assert!(
            error.message.contains("auto, text, json, journal"),
            "{error}"
        );
        assert!(names("8:42", 8, 42) && !names("8:42", 8, 43) && !names("", 8, 42));
    }
}
