//! The records of tasks of port 1003, in memory and in their files.
//!
//! ```text
//!  tasks/submitted/<task_id>.json    what this node handed to others
//!  tasks/received/<task_id>.json     what others handed to this node
//!  tasks/results/<task_id>_result.txt, <task_id>_<filename>
//! ```
//!
//! The layout is Pilot's, below the node's state directory. A record changes here alone, by
//! [`TaskStore::change`], which refuses a step that the state machine does not have. Both tables are
//! bounded: a finished task makes room for a new one and takes its files along. Every call blocks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ramjet_proto::agent::tasks::{Output, TaskRecord, TaskState, is_task_id};

use super::files::{Durable, make_folder, named, unix_ms_of, write_whole};

/// Tasks that are kept on each side.
pub(super) const TASKS_MAX: usize = 4_096;
/// Longest record that is read from disk.
const RECORD_LEN_MAX: u64 = 4 << 20;

/// Which side of a task this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TaskSide {
    Submitted,
    Received,
}

impl TaskSide {
    fn folder(self) -> &'static str {
        match self {
            TaskSide::Submitted => "submitted",
            TaskSide::Received => "received",
        }
    }
}

/// Both tables and their folders.
#[derive(Debug)]
pub(super) struct TaskStore {
    folder: Option<PathBuf>,
    tables: Mutex<[BTreeMap<String, TaskRecord>; 2]>,
}

impl TaskStore {
    /// Opens the folders below `state` and reads the records in them.
    ///
    /// # Errors
    /// The path and what the system says.
    pub(super) fn open(state: Option<&Path>) -> Result<Self, String> {
        let folder = state.map(|state| state.join("tasks"));
        let mut tables = [BTreeMap::new(), BTreeMap::new()];
        if let Some(folder) = &folder {
            make_folder(&folder.join("results"))?;
            for side in [TaskSide::Submitted, TaskSide::Received] {
                let path = folder.join(side.folder());
                make_folder(&path)?;
                tables[side as usize] = read_records(&path)?;
            }
        }
        Ok(TaskStore {
            folder,
            tables: Mutex::new(tables),
        })
    }

    fn tables(&self) -> MutexGuard<'_, [BTreeMap<String, TaskRecord>; 2]> {
        // Rows are replaced one by one and valid in between.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task.
    pub(super) fn task(&self, side: TaskSide, id: &str) -> Option<TaskRecord> {
        self.tables()[side as usize].get(id).cloned()
    }

    /// Every task of a side, by id.
    pub(super) fn tasks(&self, side: TaskSide) -> Vec<TaskRecord> {
        self.tables()[side as usize].values().cloned().collect()
    }

    /// A new task.
    ///
    /// # Errors
    /// The id is taken, the table is full of unfinished tasks, or what the system says.
    pub(super) fn add(&self, side: TaskSide, record: TaskRecord) -> Result<(), String> {
        let dropped = {
            let table = &mut self.tables()[side as usize];
            if table.contains_key(&record.task_id) {
                return Err(format!("task {} is known already", record.task_id));
            }
            let mut dropped = None;
            if table.len() >= TASKS_MAX {
                let oldest = table
                    .values()
                    .filter(|row| row.status.is_over())
                    .min_by(|a, b| a.created_at.cmp(&b.created_at))
                    .map(|row| row.task_id.clone());
                let Some(oldest) = oldest else {
                    return Err(format!("{TASKS_MAX} tasks are open, the limit; try later"));
                };
                dropped = table.remove(&oldest);
            }
            table.insert(record.task_id.clone(), record.clone());
            dropped
        };
        if let Some(dropped) = dropped {
            self.forget(side, &dropped);
        }
        self.write(side, &record)
    }

    /// Takes a step: the record after it.
    ///
    /// # Errors
    /// No such task, a step that it cannot take, or what the system says.
    pub(super) fn change(
        &self,
        side: TaskSide,
        id: &str,
        next: TaskState,
        edit: impl FnOnce(&mut TaskRecord),
    ) -> Result<TaskRecord, String> {
        let record = {
            let table = &mut self.tables()[side as usize];
            let record = table
                .get_mut(id)
                .ok_or_else(|| format!("task {id} is not known"))?;
            if !record.status.may_become(next) {
                return Err(format!(
                    "task {id} is {}, not to become {next}",
                    record.status
                ));
            }
            record.status = next;
            edit(record);
            record.clone()
        };
        self.write(side, &record)?;
        Ok(record)
    }

    /// Keeps what a task came to: the name of the file, or nothing if the node keeps none.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn keep_result(&self, id: &str, output: &Output) -> Result<Option<String>, String> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let (name, bytes) = match output {
            Output::Text(text) => (format!("{id}_result.txt"), text.as_bytes()),
            Output::File { name, content } => (format!("{id}_{name}"), &content[..]),
        };
        if name.len() > 255 {
            return Err(format!(
                "file name {name:?}: {} bytes, at most 255",
                name.len()
            ));
        }
        write_whole(&folder.join("results").join(&name), bytes, Durable::Moved)?;
        Ok(Some(name))
    }

    fn write(&self, side: TaskSide, record: &TaskRecord) -> Result<(), String> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let path = folder
            .join(side.folder())
            .join(format!("{}.json", record.task_id));
        let json = serde_json::to_vec_pretty(record).expect("texts and numbers serialize");
        write_whole(&path, &json, Durable::Moved)
    }

    fn forget(&self, side: TaskSide, record: &TaskRecord) {
        let Some(folder) = &self.folder else { return };
        let id = &record.task_id;
        let mut paths = vec![folder.join(side.folder()).join(format!("{id}.json"))];
        if side == TaskSide::Submitted {
            paths.push(folder.join("results").join(format!("{id}_result.txt")));
            if record.result_type == "file" {
                paths.push(
                    folder
                        .join("results")
                        .join(format!("{id}_{}", record.results)),
                );
            }
        }
        for path in paths {
            // It may never have been there.
            let _ = fs::remove_file(path);
        }
    }
}

/// When a record was made, in milliseconds since 1970.
pub(super) fn created_ms(record: &TaskRecord) -> u64 {
    unix_ms_of(&record.created_at).unwrap_or(0)
}

fn read_records(folder: &Path) -> Result<BTreeMap<String, TaskRecord>, String> {
    let mut records = BTreeMap::new();
    let entries = fs::read_dir(folder).map_err(|error| named(folder, &error))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_record = path
            .extension()
            .is_some_and(|extension| extension == "json")
            && entry
                .metadata()
                .is_ok_and(|file| file.len() <= RECORD_LEN_MAX);
        if !is_record || records.len() >= TASKS_MAX {
            continue;
        }
        let read = fs::read(&path).ok();
        let record = read.and_then(|bytes| serde_json::from_slice::<TaskRecord>(&bytes).ok());
        match record {
            Some(record) if is_task_id(&record.task_id) => {
                records.insert(record.task_id.clone(), record);
            }
            _ => tracing::warn!(path = %path.display(), "no task record; left alone"),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramjet_proto::agent::tasks::TaskTimes;

    fn record(id: &str, created_at: &str) -> TaskRecord {
        TaskRecord {
            task_id: id.to_owned(),
            task_description: "echo: x".to_owned(),
            created_at: created_at.to_owned(),
            status: TaskState::New,
            status_justification: String::new(),
            from: "0:0000.0000.0001".to_owned(),
            to: "0:0000.0000.0002".to_owned(),
            accepted_at: String::new(),
            staged_at: String::new(),
            execute_started_at: String::new(),
            completed_at: String::new(),
            times: TaskTimes::default(),
            result_type: String::new(),
            results: String::new(),
        }
    }

    #[test]
    fn records_take_only_the_steps_they_have_and_survive_a_restart() {
        let state = tempfile::tempdir().expect("a folder");
        let side = TaskSide::Received;
        let store = TaskStore::open(Some(state.path())).expect("opened");
        store.add(side, record("a", "1")).expect("new");
        assert!(store.add(side, record("a", "1")).is_err(), "known");
        assert!(
            store
                .change(side, "b", TaskState::Accepted, |_| {})
                .is_err()
        );
        store
            .change(side, "a", TaskState::Executing, |row| row.times.idle_ms = 5)
            .expect("forward");
        let back = store.change(side, "a", TaskState::Accepted, |_| {});
        assert!(back.is_err_and(|why| why.contains("EXECUTING")));
        fs::write(state.path().join("tasks/received/x.json"), "{").expect("written");
        let again = TaskStore::open(Some(state.path())).expect("opened");
        let row = again.task(side, "a").expect("it survives");
        assert_eq!((row.status, row.times.idle_ms), (TaskState::Executing, 5));
        assert_eq!(again.tasks(side).len(), 1);
        assert_eq!(again.task(TaskSide::Submitted, "a"), None);
    }

    #[test]
    fn a_finished_task_makes_room_and_takes_its_files_along() {
        let state = tempfile::tempdir().expect("a folder");
        let store = TaskStore::open(Some(state.path())).expect("opened");
        let side = TaskSide::Submitted;
        {
            let table = &mut store.tables()[side as usize];
            for number in 1..TASKS_MAX {
                let id = format!("t-{number}");
                table.insert(id.clone(), record(&id, "2"));
            }
        }
        store.add(side, record("old", "1")).expect("room");
        let full = store.add(side, record("new", "3"));
        assert!(full.is_err_and(|why| why.contains("4096 tasks are open")));
        let output = Output::Text("done".to_owned());
        store.keep_result("old", &output).expect("kept");
        let result = state.path().join("tasks/results/old_result.txt");
        assert_eq!(fs::read(&result).expect("there"), b"done");
        store
            .change(side, "old", TaskState::Succeeded, |_| {})
            .expect("over");
        store.add(side, record("new", "3")).expect("room again");
        assert_eq!(store.task(side, "old"), None);
        assert!(!result.exists());
        assert!(!state.path().join("tasks/submitted/old.json").exists());
    }
}
