//! The file of the local socket: its place, its mode, and who was there before.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A bound socket, before the thread that serves it.
pub(crate) struct LocalListener {
    pub(super) listener: std::os::unix::net::UnixListener,
    pub(super) path: PathBuf,
    /// Whose the file is.
    pub(super) uid: u32,
}

/// Binds the socket at `path` with mode 0600.
///
/// # Errors
/// The path and what stands in the way: a file of another kind, another node, the directory.
pub(crate) fn bind(path: &Path) -> Result<LocalListener, String> {
    let named = |error: io::Error| format!("socket {}: {error}", path.display());
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(format!(
                "socket {}: there is a file that is no socket; remove it or name another path",
                path.display()
            ));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(format!(
                    "socket {}: another node listens there; stop it or name another path",
                    path.display()
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(named(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(error)),
    }
    // Bound beside its place and moved there once its mode is right: nobody can connect before,
    // and a stale file is replaced in one step.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let _ = std::fs::remove_file(&partial);
    let listener = std::os::unix::net::UnixListener::bind(&partial).map_err(named)?;
    let placed = std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| std::fs::rename(&partial, path))
        .and_then(|()| std::fs::metadata(path));
    match placed {
        Ok(metadata) => Ok(LocalListener {
            listener,
            path: path.to_path_buf(),
            uid: metadata.uid(),
        }),
        Err(error) => {
            let _ = std::fs::remove_file(&partial);
            Err(named(error))
        }
    }
}
