//! Replays every file of the registry port's fuzz corpus through its target.

use std::path::Path;

#[test]
fn requests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/fuzz/corpus/requests");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is part of the tree") {
        let path = entry.expect("a readable folder").path();
        ramjet_registry::fuzzing::requests(&std::fs::read(path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 8, "{count} files");
}
