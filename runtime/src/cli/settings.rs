//! What the settings mean, wherever they were written.
//!
//! Every setting has one name and three spellings: the flag `--task-ready`, the variable
//! `RAMJET_TASK_READY`, and the key `task-ready` in the TOML file. A flag wins over the
//! environment, the environment over the file, and the file over the default. All three arrive as
//! text and are read by the same accessor, so that a value has the same bounds and the same error
//! everywhere.
//!
//! Invariants: an unknown key or `RAMJET_` variable is an error that suggests the nearest name; an
//! error names where the value stands, the value, the bound, and what to do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::exit::Failure;

/// A setting: its name, and what it decides (shown beside an error about it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name: the flag without dashes, and the key in the file.
    pub name: &'static str,
    /// What it decides.
    pub decides: &'static str,
}

impl Setting {
    /// The name of its environment variable.
    pub fn variable(self) -> String {
        format!(
            "{VARIABLE_PREFIX}{}",
            self.name.to_ascii_uppercase().replace('-', "_")
        )
    }
}

/// What every variable of ours begins with.
pub const VARIABLE_PREFIX: &str = "RAMJET_";

macro_rules! settings {
    ($($constant:ident $name:literal $decides:literal;)*) => {
        $(#[doc = concat!("`", $name, "`: ", $decides, ".")]
        pub const $constant: Setting = Setting { name: $name, decides: $decides };)*

        /// Every setting.
        pub const SETTINGS: &[Setting] = &[$($constant,)*];
    };
}

settings! {
    ACCEPT_FROM "accept-from" "whom a skill serves beyond the polo gate";
    AGENT "agent" "a skill and the command that runs it";
    AGENT_MEMORY "agent-memory" "mebibytes shared with agents";
    AGENT_SOCKET "agent-socket" "the socket where agents attach";
    AGENT_TASKS_MAX "agent-tasks-max" "tasks of a worker that wait for agents or run there";
    ALLOW_UNSIGNED_POLO "allow-unsigned-polo" "whether unsigned polo messages are taken";
    AUTO_APPROVE "auto-approve" "whether every request for trust is approved";
    BEACON "beacon" "the UDP address of the beacon";
    BYTE_LOG "byte-log" "a file for every byte the registry receives";
    CAPABILITY "capability" "what a node says it can do";
    COLOR "color" "when to use colours";
    CORES "cores" "the cores to pin workers to";
    CREDITS "credits" "tasks that a worker lets one engagement have outstanding";
    ECHO "echo" "whether streams to port 7 are sent back";
    ENDPOINT "endpoint" "the address that others send to";
    ENGAGEMENTS_MAX "engagements-max" "engagements a worker serves at a time";
    EXCHANGE "exchange" "whether agents may send messages, files and tasks to port 1001";
    HOSTNAME "hostname" "the name of a node at the registry";
    IDENTITY "identity" "the file with the Ed25519 identity";
    IDLE "idle" "what a worker does when it has nothing to do";
    IO "io" "which system interface moves datagrams";
    LISTEN "listen" "the UDP address of the tunnel";
    LOG "log" "what is logged";
    LOG_FORMAT "log-format" "the form of the log";
    METRICS "metrics" "the TCP address where Prometheus finds the metrics";
    METRICS_PUSH "metrics-push" "the URL of the OpenTelemetry collector that metrics are pushed to";
    OWNER "owner" "Pilot's owner field";
    PAGES "pages" "which pages of memory buffers lie in";
    POLO_POLICY "polo-policy" "the rule by which polo moves";
    POOL_THREADS "pool-threads" "threads for skills that run beside the workers";
    PUBLIC "public" "whether anyone may look the node up";
    REGISTRY "registry" "the TCP address of the registry";
    REGISTRY_BEACON "registry-beacon" "the UDP address of the registry's beacon";
    REGISTRY_KEY "registry-key" "the public key that the registry must have";
    REGISTRY_LISTEN "registry-listen" "the TCP address the registry listens on";
    SEGMENTATION "segmentation" "whether the kernel cuts and gathers trains of datagrams";
    SKILL "skill" "what a node can do";
    SOCKET "socket" "the local socket of a node";
    STATE "state" "the folder for identity, receipts and the registry's log";
    TASK_READY "task-ready" "whether a node wants tasks";
    TASKS "tasks" "whether agents may submit tasks to port 1003";
    TUNNELS_MAX "tunnels-max" "tunnels that one worker holds";
    UNSIGNED_MAX "unsigned-max" "results that a worker sends without a signed receipt";
    WORKERS "workers" "worker threads";
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// In this file.
    File(PathBuf),
}

/// Values from one place: setting name to its texts, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer(BTreeMap<&'static str, Vec<String>>);

impl Layer {
    /// Adds a flag, if it was typed.
    #[must_use]
    pub fn set(mut self, setting: Setting, value: &Option<String>) -> Self {
        if let Some(value) = value {
            self.0.insert(setting.name, vec![value.clone()]);
        }
        self
    }

    /// Adds a flag that may be repeated, if it was typed.
    #[must_use]
    pub fn set_all(mut self, setting: Setting, values: &[String]) -> Self {
        if !values.is_empty() {
            self.0.insert(setting.name, values.to_vec());
        }
        self
    }
}

/// All settings, resolved over their three sources.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    layers: Vec<(Origin, Layer)>,
}

/// A value as it was found.
#[derive(Clone, Debug)]
struct Found<'a> {
    setting: Setting,
    origin: &'a Origin,
    values: &'a [String],
}

impl Found<'_> {
    /// The error for `value`: where it stands, and why it cannot be.
    fn refuse(&self, value: &str, why: impl fmt::Display) -> Failure {
        Failure::usage(format!("{}: {value:?} {why}", self.place()))
    }

    fn place(&self) -> String {
        match self.origin {
            Origin::Flag => format!("--{}", self.setting.name),
            Origin::Environment => self.setting.variable(),
            Origin::File(path) => format!("{} in {}", self.setting.name, path.display()),
        }
    }

    /// The value of a setting that holds one; the last one typed wins.
    fn one(&self) -> &str {
        self.values.last().map_or("", String::as_str)
    }
}

impl Settings {
    /// Lays flags over the environment over the file. `environment` may hold foreign variables;
    /// `file` is the path and text of the file, if there is one.
    ///
    /// # Errors
    /// An unknown variable or key, or a file that is no TOML of the right shape.
    pub fn resolve(
        flags: Layer,
        environment: impl IntoIterator<Item = (String, String)>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, Failure> {
        let mut layers = vec![
            (Origin::Flag, flags),
            (Origin::Environment, environment_layer(environment)?),
        ];
        if let Some((path, text)) = file {
            layers.push((Origin::File(path.to_owned()), file_layer(path, text)?));
        }
        Ok(Settings { layers })
    }

    /// The file among the sources.
    pub fn file(&self) -> Option<&Path> {
        self.layers.iter().find_map(|(origin, _)| match origin {
            Origin::File(path) => Some(path.as_path()),
            Origin::Flag | Origin::Environment => None,
        })
    }

    /// The same flags and environment over another text of the same file.
    ///
    /// # Errors
    /// As [`Self::resolve`], of the file.
    pub fn with_file(&self, path: &Path, text: &str) -> Result<Self, Failure> {
        let mut layers: Vec<(Origin, Layer)> = self.layers.clone();
        layers.retain(|(origin, _)| !matches!(origin, Origin::File(_)));
        layers.push((Origin::File(path.to_owned()), file_layer(path, text)?));
        Ok(Settings { layers })
    }

    /// Takes the values of these settings from `fresh`, which has the same flags and environment.
    pub fn keep(&mut self, fresh: Settings, which: &[Setting]) {
        let is_file = |origin: &Origin| matches!(origin, Origin::File(_));
        let fresh = fresh.layers.into_iter().find(|(origin, _)| is_file(origin));
        let ours = self.layers.iter_mut().find(|(origin, _)| is_file(origin));
        if let (Some((_, fresh)), Some((_, ours))) = (fresh, ours) {
            for setting in which {
                match fresh.0.get(setting.name) {
                    Some(values) => ours.0.insert(setting.name, values.clone()),
                    None => ours.0.remove(setting.name),
                };
            }
        }
    }

    fn find(&self, setting: Setting) -> Option<Found<'_>> {
        self.layers.iter().find_map(|(origin, layer)| {
            let values = layer.0.get(setting.name)?;
            Some(Found {
                setting,
                origin,
                values,
            })
        })
    }

    /// Whether it was written anywhere.
    pub fn is_set(&self, setting: Setting) -> bool {
        self.find(setting).is_some()
    }

    /// Whether it was typed as a flag.
    pub fn is_flag(&self, setting: Setting) -> bool {
        self.find(setting)
            .is_some_and(|found| *found.origin == Origin::Flag)
    }

    /// The text of a setting.
    pub fn text(&self, setting: Setting) -> Option<String> {
        self.find(setting).map(|found| found.one().to_owned())
    }

    /// The texts of a setting that may be repeated.
    pub fn texts(&self, setting: Setting) -> Vec<String> {
        self.find(setting)
            .map(|found| found.values.to_vec())
            .unwrap_or_default()
    }

    /// A path.
    pub fn path(&self, setting: Setting) -> Option<PathBuf> {
        self.text(setting).map(PathBuf::from)
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// If it is none, or outside.
    pub fn number<T>(
        &self,
        setting: Setting,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let Some(found) = self.find(setting) else {
            return Ok(None);
        };
        match found.one().parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(found.refuse(
                found.one(),
                format_args!(
                    "is no whole number from {} to {}; {} takes one",
                    range.start(),
                    range.end(),
                    setting.decides
                ),
            )),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// If it is neither.
    pub fn flag(&self, setting: Setting) -> Result<Option<bool>, Failure> {
        self.choice(setting, &[("true", true), ("false", false)])
    }

    /// One of a closed list of words.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn choice<T: Copy>(
        &self,
        setting: Setting,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, Failure> {
        let Some(found) = self.find(setting) else {
            return Ok(None);
        };
        let value = found.one();
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == value) {
            return Ok(Some(*choice));
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let meant = suggestion(value, words.iter().copied());
        Err(found.refuse(
            value,
            format_args!("is none of {}{meant}", words.join(", ")),
        ))
    }

    /// An `address:port`; a host name is looked up.
    ///
    /// # Errors
    /// If it is none, or the name has no address.
    pub fn address(&self, setting: Setting) -> Result<Option<SocketAddr>, Failure> {
        let Some(found) = self.find(setting) else {
            return Ok(None);
        };
        let value = found.one();
        if let Ok(address) = value.parse() {
            return Ok(Some(address));
        }
        let looked_up = match value.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                value.to_socket_addrs()
            }
            _ => {
                return Err(found.refuse(
                    value,
                    format_args!(
                        "is no address with a port, as in 127.0.0.1:9000; {} takes one",
                        setting.decides
                    ),
                ));
            }
        };
        match looked_up.map(|mut addresses| addresses.next()) {
            Ok(Some(address)) => Ok(Some(address)),
            Ok(None) => Err(found.refuse(value, "has no address; write it in numbers")),
            Err(error) => Err(found.refuse(
                value,
                format_args!("could not be looked up ({error}); write the address in numbers"),
            )),
        }
    }

    /// Anything that reads itself from text.
    ///
    /// # Errors
    /// What the type says of the text.
    pub fn parsed<T>(
        &self,
        setting: Setting,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Failure> {
        let Some(found) = self.find(setting) else {
            return Ok(Vec::new());
        };
        found
            .values
            .iter()
            .map(|value| parse(value).map_err(|why| found.refuse(value, why)))
            .collect()
    }
}

fn environment_layer(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Layer, Failure> {
    let mut layer = Layer::default();
    // Read by the caller, who must know it before the file.
    let config = format!("{VARIABLE_PREFIX}CONFIG");
    for (name, value) in environment {
        // An agent may run ramjet, and its own connection is none of that one's settings.
        let foreign = name == config || name == crate::port::launch::AGENT_FD;
        if !name.starts_with(VARIABLE_PREFIX) || foreign {
            continue;
        }
        let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) else {
            let names: Vec<String> = SETTINGS.iter().map(|setting| setting.variable()).collect();
            let meant = suggestion(&name, names.iter().map(String::as_str));
            return Err(Failure::usage(format!(
                "{name}: no such variable{meant}; unset it, or see `ramjet help`"
            )));
        };
        // Lists are written with commas: no skill, core or capability key holds one, and a
        // capability value that does belongs into the file.
        let values = match *setting {
            SKILL | CORES | CAPABILITY | ACCEPT_FROM => value
                .split(',')
                .map(|member| member.trim().to_owned())
                .collect(),
            _ => vec![value],
        };
        layer.0.insert(setting.name, values);
    }
    Ok(layer)
}

fn file_layer(path: &Path, text: &str) -> Result<Layer, Failure> {
    let file = path.display();
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| Failure::usage(format!("{file}: no TOML: {error}")))?;
    let mut layer = Layer::default();
    for (key, value) in table {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == key) else {
            let meant = suggestion(&key, SETTINGS.iter().map(|setting| setting.name));
            return Err(Failure::usage(format!(
                "{file}: there is no key {key:?}{meant}"
            )));
        };
        let texts = texts_of(*setting, &value).ok_or_else(|| {
            Failure::usage(format!(
                "{file}: {key} cannot be a {}; it takes text, a number, true or false{}",
                value.type_str(),
                if takes_table(*setting) {
                    ", a list of these, or a table of them"
                } else {
                    ""
                }
            ))
        })?;
        layer.0.insert(setting.name, texts);
    }
    Ok(layer)
}

fn takes_table(setting: Setting) -> bool {
    matches!(setting, CAPABILITY | ACCEPT_FROM | AGENT)
}

/// The texts of a TOML value: one for a scalar, one a member for a list, `key=value` for each entry
/// of a table where the setting takes one. `None` for a shape that the setting does not take.
fn texts_of(setting: Setting, value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(members) => members.iter().map(text_of).collect(),
        toml::Value::Table(table) if takes_table(setting) => table
            .iter()
            .map(|(key, value)| Some(format!("{key}={}", text_of(value)?)))
            .collect(),
        _ => text_of(value).map(|text| vec![text]),
    }
}

fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// `; did you mean …?` if one of `names` is near enough to `name`, else nothing.
pub fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("; did you mean {candidate:?}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        flags: Layer,
        environment: &[(&str, &str)],
        file: &str,
    ) -> Result<Settings, Failure> {
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::resolve(flags, environment, Some((Path::new("ramjet.toml"), file)))
    }

    fn typed(setting: Setting, value: &str) -> Layer {
        Layer::default().set(setting, &Some(value.to_owned()))
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file() {
        let file = "workers = 1";
        let variable = [("RAMJET_WORKERS", "2"), ("PATH", "/bin")];
        let number = |settings: Settings| settings.number(WORKERS, 1..=64).expect("a number");
        let all = resolve(typed(WORKERS, "3"), &variable, file).expect("valid");
        assert_eq!(number(all), Some(3));
        let two = resolve(Layer::default(), &variable, file).expect("valid");
        assert_eq!(number(two), Some(2));
        let one = resolve(Layer::default(), &[], file).expect("valid");
        assert_eq!(number(one), Some(1));
        let none = resolve(Layer::default(), &[], "").expect("valid");
        assert_eq!(number(none), None);
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        let error = resolve(Layer::default(), &[("RAMJET_WORKER", "2")], "").expect_err("unknown");
        assert_eq!(
            error.message,
            "RAMJET_WORKER: no such variable; did you mean \"RAMJET_WORKERS\"?; unset it, or see \
             `ramjet help`"
        );
        let error = resolve(Layer::default(), &[], "task_ready = true").expect_err("unknown");
        assert_eq!(
            error.message,
            "ramjet.toml: there is no key \"task_ready\"; did you mean \"task-ready\"?"
        );
        let error = resolve(Layer::default(), &[], "zzz = true").expect_err("unknown");
        assert_eq!(error.message, "ramjet.toml: there is no key \"zzz\"");
    }

    #[test]
    fn an_error_names_place_value_and_bound() {
        let none = Layer::default;
        let table = [
            (
                resolve(typed(WORKERS, "0"), &[], ""),
                "--workers: \"0\" is no whole number from 1 to 64",
            ),
            (
                resolve(none(), &[("RAMJET_WORKERS", "many")], ""),
                "RAMJET_WORKERS: \"many\" is no",
            ),
            (
                resolve(none(), &[], "workers = 65"),
                "workers in ramjet.toml: \"65\" is no whole",
            ),
        ];
        for (settings, expected) in table {
            let settings = settings.expect("known keys");
            let error = settings.number(WORKERS, 1..=64).expect_err("out of range");
            assert!(error.message.starts_with(expected), "{}", error.message);
            assert_eq!(error.exit, super::super::exit::Exit::Usage);
        }
    }

    #[test]
    fn a_word_outside_the_list_is_refused_with_the_list() {
        let settings = resolve(typed(IDLE, "spinn"), &[], "").expect("known");
        let error = settings
            .choice(IDLE, &[("spin", 1), ("park", 2)])
            .expect_err("no choice");
        assert_eq!(
            error.message,
            "--idle: \"spinn\" is none of spin, park; did you mean \"spin\"?"
        );
    }

    #[test]
    fn lists_and_tables_of_the_file_become_texts() {
        let file = "skill = [\"echo\", \"langid\"]\n[capability]\nmodel = \"llama\"\nmax = 5\n";
        let settings = resolve(Layer::default(), &[], file).expect("valid");
        assert_eq!(settings.texts(SKILL), ["echo", "langid"]);
        let mut capabilities = settings.texts(CAPABILITY);
        capabilities.sort();
        assert_eq!(capabilities, ["max=5", "model=llama"]);
        let error = resolve(Layer::default(), &[], "[workers]\nn = 1").expect_err("no table");
        assert!(
            error.message.contains("workers cannot be a table"),
            "{}",
            error.message
        );
        let variable = [("RAMJET_SKILL", "echo, sha256")];
        let settings = resolve(Layer::default(), &variable, file).expect("valid");
        assert_eq!(settings.texts(SKILL), ["echo", "sha256"]);
    }

    #[test]
    fn an_address_needs_a_port_and_names_are_looked_up() {
        let address = |text: &str| {
            resolve(typed(REGISTRY, text), &[], "")
                .expect("known")
                .address(REGISTRY)
        };
        assert_eq!(
            address("127.0.0.1:9000"),
            Ok(Some(([127, 0, 0, 1], 9000).into()))
        );
        let local = address("localhost:9000").expect("looked up").expect("set");
        assert!(local.ip().is_loopback());
        for text in ["127.0.0.1", "9000", ":9000", "host:99999"] {
            let error = address(text).expect_err(text);
            assert!(
                error.message.contains("is no address with a port"),
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn every_setting_has_a_name_of_its_own_in_order() {
        let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }
}
