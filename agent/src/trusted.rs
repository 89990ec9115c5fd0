//! Checks that a path belongs to root or this agent's own user, and that nobody else can change it: the rule
//! for what is run with the agent's rights, and a warning for what it reads and trusts.
//!
//! The path is walked from `/`, each directory by a descriptor of its own, and symbolic links by hand. Every
//! directory on the path counts, those of links too: a user who can write one can put another file in its
//! place. In a sticky directory such as /tmp nobody can replace what belongs to another user (inode(7)), so what root
//! or the agent's user has there is checked by itself; a file with several names, one of which anyone may have
//! created, is not trusted there. If all of them are good, no untrusted user can change the result between check
//! and use.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};

/// Most symbolic links on a path, the kernel's limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Attribute of an access list; with one, the group's bits are those of everyone in it (acl(5)).
const ACL: &str = "system.posix_acl_access";

/// Why a path is not trusted; [`TrustError::fix`] is what to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// It could not be examined.
    #[error("{} can't be read: {source}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Another user owns it.
    #[error("{} belongs to user {owner}, who can change it", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// Other users may write it.
    #[error("{} can be written by others (mode {mode:04o}, group {group})", path.display())]
    Writable {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its group.
        group: u32,
        /// Whether an access list adds to them.
        acl: bool,
    },
}

impl TrustError {
    /// The command that fixes it; `None`: that depends.
    pub(crate) fn fix(&self) -> Option<String> {
        match self {
            TrustError::Unreadable { .. } => None,
            TrustError::Owner { path, .. } => Some(format!("chown root {}", quoted(path))),
            TrustError::Writable { path, acl, .. } => {
                let acl = if *acl { format!("setfacl -b {} && ", quoted(path)) } else { String::new() };
                Some(format!("{acl}chmod go-w {}", quoted(path)))
            }
        }
    }

    /// Which part of the path is not trusted: its end, or a directory on it.
    pub(crate) fn path(&self) -> &Path {
        let (TrustError::Unreadable { path, .. }
        | TrustError::Owner { path, .. }
        | TrustError::Writable { path, .. }) = self;
        path
    }

    /// The message, with the command.
    pub(crate) fn with_fix(&self) -> String {
        self.fix().map_or_else(|| self.to_string(), |command| format!("{self}; run: {command}"))
    }
}

/// A path as an argument in a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// What the path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckedFile {
    /// A directory.
    pub(crate) is_dir: bool,
    /// An executable file.
    pub(crate) is_program: bool,
}

/// Checks an absolute path, every directory above it, and those of all symbolic links on it.
pub(crate) fn check(path: &Path) -> Result<CheckedFile, TrustError> {
    let unreadable = |source: rustix::io::Errno| TrustError::Unreadable {
        path: path.to_owned(),
        source: io::Error::from_raw_os_error(source.raw_os_error()),
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || rustix::fs::openat(CWD, "/", flags, Mode::empty());
    let (mut here, mut shown) = (root().map_err(unreadable)?, PathBuf::from("/"));
    let mut about = rustix::fs::fstat(&here).map_err(unreadable)?;
    check_one(&here, &about, &shown)?;
    // The error of the directory entered last, if only its sticky bit keeps others from changing it.
    let mut sticky = None;
    let (mut todo, mut links) = (VecDeque::new(), 0);
    prepend(&mut todo, path);
    while let Some(name) = todo.pop_front() {
        let next = rustix::fs::openat(&here, &name, flags, Mode::empty()).map_err(unreadable)?;
        about = rustix::fs::fstat(&next).map_err(unreadable)?;
        if let Some(writable) = sticky.take()
            && !is_safe_in_sticky(&about)
        {
            return Err(writable);
        }
        if FileType::from_raw_mode(about.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(unreadable(rustix::io::Errno::LOOP));
            }
            // Of the very link that was opened; replacing it takes write access to its directory, which was
            // checked.
            let target = rustix::fs::readlinkat(&next, "", Vec::new()).map_err(unreadable)?;
            let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
            if target.is_absolute() {
                (here, shown) = (root().map_err(unreadable)?, PathBuf::from("/"));
            }
            prepend(&mut todo, &target);
            continue;
        }
        if name == ".." {
            shown.pop();
        } else {
            shown.push(&name);
        }
        if let Err(error) = check_one(&next, &about, &shown) {
            if !(is_sticky(&about) && matches!(error, TrustError::Writable { .. })) {
                return Err(error);
            }
            sticky = Some(error);
        }
        here = next;
    }
    if let Some(writable) = sticky {
        // The path ends here, so what others create in it counts.
        return Err(writable);
    }
    let kind = FileType::from_raw_mode(about.st_mode);
    Ok(CheckedFile {
        is_dir: kind == FileType::Directory,
        is_program: kind == FileType::RegularFile && about.st_mode & 0o111 != 0,
    })
}

/// Puts the parts of a path before those that still have to be walked.
fn prepend(todo: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn is_sticky(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::Directory && about.st_mode & 0o1000 != 0
}

/// Whether no other user can rename or remove this in a sticky directory, or has created it.
fn is_safe_in_sticky(about: &Stat) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let is_dir = FileType::from_raw_mode(about.st_mode) == FileType::Directory;
    [0, user].contains(&about.st_uid) && (is_dir || about.st_nlink == 1)
}

/// Whether only root and this agent's user may change one file or directory.
fn check_one(file: &OwnedFd, about: &Stat, shown: &Path) -> Result<(), TrustError> {
    let (user, own_group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (owner, group, mode) = (about.st_uid, about.st_gid, about.st_mode & 0o7777);
    if owner != 0 && owner != user {
        return Err(TrustError::Owner { path: shown.to_owned(), owner });
    }
    let by_group = mode & 0o020 != 0;
    let acl = by_group && has_acl(file);
    if mode & 0o002 != 0 || acl || (by_group && group != 0 && group != own_group) {
        return Err(TrustError::Writable { path: shown.to_owned(), mode, group, acl });
    }
    Ok(())
}

/// Whether it has an access list. An O_PATH descriptor can be queried by its name in /proc.
fn has_acl(file: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // One that is longer than this is an access list too.
    match rustix::fs::getxattr(path, ACL, &mut [0_u8; 256]) {
        Ok(length) => length > 0,
        Err(error) => error == rustix::io::Errno::RANGE,
    }
}

/// Whether others than the owner and the group may read a file.
pub(crate) fn is_public(path: &Path) -> bool {
    let about = rustix::fs::statat(CWD, path, AtFlags::empty());
    about.is_ok_and(|about| about.st_mode & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;
    use crate::testing::trusted_dir;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// `a/b/program`, all of it good.
    fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = trusted_dir();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        mode(&dir.path().join("a"), 0o755);
        mode(&inner, 0o755);
        let program = inner.join("program");
        fs::write(&program, "").unwrap();
        mode(&program, 0o755);
        (dir, inner, program)
    }

    fn why(path: &Path) -> String {
        check(path).unwrap_err().with_fix()
    }

    #[test]
    fn a_path_that_only_its_owner_can_change_is_trusted() {
        let (_dir, inner, program) = tree();
        assert_eq!(check(&program).unwrap(), CheckedFile { is_dir: false, is_program: true });
        assert_eq!(check(&inner).unwrap(), CheckedFile { is_dir: true, is_program: false });
        assert_eq!(check(&inner.join("../b/./program")).unwrap(), check(&program).unwrap());
        mode(&program, 0o644);
        assert!(!check(&program).unwrap().is_program);
        assert!(why(&inner.join("none")).contains("none can't be read"));
        assert!(check(&program.join("x")).is_err(), "a file is no directory");
    }

    #[test]
    fn a_path_that_others_may_write_is_named_with_the_command_to_run() {
        let (dir, inner, program) = tree();
        for path in [&program, &inner, &dir.path().join("a")] {
            for bits in [0o757, 0o777] {
                mode(path, bits);
                let said = why(&program);
                assert!(said.starts_with(&format!("{} can be written by others", path.display())), "{said}");
                assert!(said.ends_with(&format!("run: chmod go-w {}", path.display())), "{said}");
            }
            mode(path, 0o755);
        }
        check(&program).unwrap();
        // The user's own group may.
        mode(&inner, 0o775);
        check(&program).unwrap();
    }

    #[test]
    fn in_a_sticky_directory_files_of_root_are_trusted() {
        let (dir, inner, program) = tree();
        mode(&inner, 0o1777);
        check(&program).unwrap();
        mode(&dir.path().join("a"), 0o1777);
        check(&program).unwrap();
        // The bit means nothing on a file, and in a directory that counts as a whole anyone can create a file.
        mode(&program, 0o1777);
        assert!(why(&program).starts_with(&format!("{} can be", program.display())));
        mode(&program, 0o755);
        assert!(why(&inner).starts_with(&format!("{} can be written by others", inner.display())));
        // A second name of a file may be anyone's.
        let name = inner.join("name");
        fs::hard_link(&program, &name).unwrap();
        assert!(why(&name).starts_with(&format!("{} can be written by others", inner.display())));
        fs::remove_file(&name).unwrap();
        symlink("program", inner.join("link")).unwrap();
        check(&inner.join("link")).unwrap();
        if !rustix::process::geteuid().is_root() {
            eprintln!("needs root: skipped the rest");
            return;
        }
        std::os::unix::fs::lchown(inner.join("link"), Some(1234), None).unwrap();
        assert!(why(&inner.join("link")).starts_with(&inner.display().to_string()), "another user's link");
        chown(&program, Some(1234), None).unwrap();
        assert!(why(&program).starts_with(&inner.display().to_string()), "another user's file");
    }

    #[test]
    fn a_path_of_another_user_or_writable_by_another_group_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("needs root: skipped");
            return;
        }
        let (_dir, inner, program) = tree();
        for path in [&program, &inner] {
            chown(path, Some(1234), None).unwrap();
            let said = why(&program);
            assert!(said.contains("belongs to user 1234") && said.contains("run: chown root /"), "{said}");
            chown(path, Some(0), Some(1234)).unwrap();
            check(&program).unwrap();
            mode(path, 0o775);
            assert!(why(&program).contains("(mode 0775, group 1234)"));
            mode(path, 0o755);
        }
        // A user in an access list, of whom the mode shows only a group bit.
        chown(&inner, Some(0), Some(0)).unwrap();
        let list: Vec<u8> = [
            vec![2, 0, 0, 0],
            entry(1, 7, u32::MAX),
            entry(2, 7, 1234),
            entry(4, 5, u32::MAX),
            entry(16, 7, u32::MAX),
            entry(32, 5, u32::MAX),
        ]
        .concat();
        match rustix::fs::setxattr(&inner, ACL, &list, rustix::fs::XattrFlags::empty()) {
            Ok(()) => assert!(why(&program).contains("run: setfacl -b ")),
            Err(rustix::io::Errno::OPNOTSUPP) => eprintln!("this file system has no access lists"),
            Err(error) => panic!("{error}"),
        }
    }

    /// One entry of an access list, as the kernel keeps it (linux/posix_acl_xattr.h).
    fn entry(tag: u16, bits: u16, id: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
    }

    #[test]
    fn directories_of_a_link_and_of_its_target_are_checked() {
        let (dir, inner, program) = tree();
        let links = dir.path().join("links");
        fs::create_dir(&links).unwrap();
        mode(&links, 0o755);
        symlink("../a/b/program", links.join("relative")).unwrap();
        symlink(&program, links.join("absolute")).unwrap();
        symlink(&inner, links.join("dir")).unwrap();
        let ways = [links.join("relative"), links.join("absolute"), links.join("dir/program")];
        ways.iter().for_each(|way| assert!(check(way).unwrap().is_program));
        mode(&links, 0o777);
        ways.iter().for_each(|way| assert!(why(way).starts_with(&links.display().to_string())));
        mode(&links, 0o755);
        mode(&inner, 0o777);
        ways.iter().for_each(|way| assert!(why(way).starts_with(&inner.display().to_string())));
        symlink("loop", links.join("loop")).unwrap();
        assert!(check(&links.join("loop")).is_err());
        // A name that a shell would split.
        let odd = links.join("it's odd");
        fs::write(&odd, "").unwrap();
        mode(&odd, 0o777);
        assert!(why(&odd).ends_with(r"it'\''s odd'"), "{}", why(&odd));
    }
}
