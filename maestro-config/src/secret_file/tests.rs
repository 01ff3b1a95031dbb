use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A secret volume as Kubernetes lays it out: a directory per version, a link `..data` to the
/// current one, and a link for each key through it.
struct Volume {
    directory: tempfile::TempDir,
    version: u32,
}

impl Volume {
    fn holding(secret: &str) -> Self {
        let mut volume = Self {
            directory: temporary(),
            version: 0,
        };
        volume.update(secret);
        symlink("..data/password", volume.path()).unwrap();
        volume
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("password")
    }

    fn update(&mut self, secret: &str) {
        self.version += 1;
        let name = format!("..version_{}", self.version);
        let directory = self.directory.path();
        std::fs::create_dir(directory.join(&name)).unwrap();
        std::fs::write(directory.join(&name).join("password"), secret).unwrap();
        symlink(&name, directory.join("..data_tmp")).unwrap();
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        if self.version > 1 {
            let old = format!("..version_{}", self.version - 1);
            std::fs::remove_dir_all(directory.join(old)).unwrap();
        }
    }
}

#[test]
fn a_swapped_volume_hands_out_the_new_secret() {
    let mut volume = Volume::holding("first\n");
    let secret = SecretFile::open(volume.path()).unwrap();
    let clone = secret.clone();
    assert_eq!(secret.current().expose(), "first");
    volume.update("other\n");
    assert_eq!(secret.current().expose(), "other");
    assert_eq!(clone.current().expose(), "other", "clones share one value");
}

#[test]
fn a_refresh_tells_whether_there_is_another_secret_to_try() {
    let directory = temporary();
    let path = directory.path().join("password");
    std::fs::write(&path, "first").unwrap();
    let secret = SecretFile::open(&path).unwrap();
    assert!(!secret.refresh());
    std::fs::write(&path, "other").unwrap();
    assert!(secret.refresh());
    assert!(!secret.refresh());
    assert_eq!(secret.current().expose(), "other");
}

#[test]
fn a_file_in_the_middle_of_being_rewritten_leaves_the_last_secret_in_force() {
    let directory = temporary();
    let path = directory.path().join("password");
    std::fs::write(&path, "first").unwrap();
    let secret = SecretFile::open(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_eq!(secret.current().expose(), "first");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(secret.current().expose(), "first");
    std::fs::write(&path, "second").unwrap();
    assert_eq!(secret.current().expose(), "second");
}

#[test]
fn one_line_end_is_dropped_and_nothing_else() {
    let directory = temporary();
    let path = directory.path().join("password");
    for (content, secret) in [
        ("a\n", "a"),
        ("a\r\n", "a"),
        ("a\n\n", "a\n"),
        (" a ", " a "),
        ("a\r", "a\r"),
    ] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(read(&path).unwrap().as_str(), secret, "{content:?}");
    }
}

#[test]
fn a_file_that_holds_no_secret_says_why() {
    let directory = temporary();
    let path = directory.path().join("password");
    let refused = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        read(&path).unwrap_err()
    };
    assert_eq!(refused(b""), Unreadable::Empty);
    assert_eq!(refused(b" \n"), Unreadable::Empty);
    assert_eq!(refused(b"\xff\xfe"), Unreadable::NotUtf8);
    assert_eq!(refused(b"\xef\xbb\xbfsecret"), Unreadable::ByteOrderMark);
    assert_eq!(refused(b"sec\0ret"), Unreadable::Nul);
    assert_eq!(refused(&vec![b'x'; LONGEST_VALUE + 1]), Unreadable::TooLong);
    assert_eq!(read(directory.path()), Err(Unreadable::NotAFile));
    assert_eq!(read(Path::new("/nowhere/at/all")), Err(Unreadable::Missing));
    // Root may read everything: what the system says to others is told here.
    let refusal = std::io::ErrorKind::PermissionDenied.into();
    assert_eq!(unreadable(&refusal), Unreadable::Refused);
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        assert_eq!(
            read(&pipe),
            Err(Unreadable::NotAFile),
            "and did not wait for a writer"
        );
    }
    let error = SecretFile::open("/nowhere/at/all").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the secret file /nowhere/at/all, which does not exist: mount the secret there, or correct the path"
    );
}

proptest! {
    #[test]
    fn a_secret_that_is_read_is_the_file_but_for_one_line_end(
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            "[a \r\n\u{feff}\0é]{0,6}".prop_map(String::into_bytes),
        ]
    ) {
        let directory = temporary();
        let path = directory.path().join("password");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(text) = read(&path) {
            prop_assert!(!text.trim().is_empty() && !text.contains('\0'));
            let rest = bytes.strip_prefix(text.as_bytes()).unwrap();
            prop_assert!([b"".as_slice(), b"\n", b"\r\n"].contains(&rest), "{rest:?}");
        }
    }
}

#[test]
fn debug_shows_no_secret() {
    let volume = Volume::holding("canary");
    let secret = SecretFile::open(volume.path()).unwrap();
    assert!(!format!("{secret:?}").contains("canary"));
}
