//! The terminal while a screen is shown on it, and its return to what it was.
//!
//! ```text
//! enter ──► alternate screen, no cursor, no echo; Ctrl-C is still a signal
//!   ├── leave, or the last handle dropped ──► as it was
//!   ├── a panic, on whatever thread ────────► as it was, then the panic's message
//!   └── the second Ctrl-C ──────────────────► as it was, then the exit
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};

use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::Rect;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in use, and what it was before.
struct Entered {
    file: File,
    before: Termios,
}

static ENTERED: Mutex<Option<Entered>> = Mutex::new(None);

/// Prepares a terminal. One at a time: a second call replaces nothing and fails.
pub fn enter(file: File) -> io::Result<()> {
    static HOOKED: Once = Once::new();
    let mut entered = lock();
    if entered.is_some() {
        return Err(io::Error::other("a screen is shown already"));
    }
    let before = tcgetattr(&file)?;
    let mut quiet = before.clone();
    // Keys would be written into the picture. Signals stay: they end the run.
    quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
    tcsetattr(&file, OptionalActions::Now, &quiet)?;
    let mut entering = Entered { file, before };
    if let Err(e) = execute!(entering.file, EnterAlternateScreen, Hide) {
        entering.restore();
        return Err(e);
    }
    *entered = Some(entering);
    drop(entered);
    HOOKED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            hook(panic);
        }));
    });
    Ok(())
}

/// Whether a screen is shown.
pub fn is_entered() -> bool {
    lock().is_some()
}

/// Makes the terminal what it was; does nothing where no screen is shown.
pub fn leave() {
    if let Some(mut entered) = lock().take() {
        entered.restore();
    }
}

/// The size of a terminal; of one that does not say, the least that a screen is made for.
pub fn size(file: &File) -> Rect {
    let size = tcgetwinsize(file).ok().filter(|s| s.ws_col > 0 && s.ws_row > 0);
    size.map_or(Rect::new(0, 0, 80, 24), |s| Rect::new(0, 0, s.ws_col, s.ws_row))
}

impl Entered {
    /// As far as the terminal is still there.
    fn restore(&mut self) {
        let _ = execute!(self.file, LeaveAlternateScreen, Show);
        let _ = self.file.flush();
        let _ = tcsetattr(&self.file, OptionalActions::Now, &self.before);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Entered>> {
    // A panic in between leaves it whole.
    ENTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// The screen is one for the process: tests that show one take turns.
    static TURN: Mutex<()> = Mutex::new(());

    pub fn turn() -> std::sync::MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A terminal of our own: what is written to the second, the first can read.
    pub fn terminal() -> (File, File) {
        let outside: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let path = name.to_str().unwrap().to_owned();
        let inside = File::options().read(true).write(true).open(path).unwrap();
        (outside.into(), inside)
    }

    /// What comes out of a terminal, up to these words.
    pub fn read_until(outside: &mut File, words: &str) -> String {
        let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        loop {
            let text = String::from_utf8_lossy(&seen).into_owned();
            if text.contains(words) {
                return text;
            }
            let mut wait = [PollFd::new(outside, PollFlags::IN)];
            assert_eq!(poll(&mut wait, Some(&patience)), Ok(1), "no {words:?} in {text:?}");
            let count = outside.read(&mut bytes).unwrap();
            seen.extend_from_slice(&bytes[..count]);
        }
    }

    fn echoes(file: &File) -> bool {
        tcgetattr(file).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let _turn = turn();
        let (mut outside, inside) = terminal();
        assert!(echoes(&inside));
        enter(inside.try_clone().unwrap()).unwrap();
        assert!(is_entered() && !echoes(&inside));
        assert!(tcgetattr(&inside).unwrap().local_modes.contains(LocalModes::ISIG));
        assert!(enter(inside.try_clone().unwrap()).is_err(), "one at a time");
        read_until(&mut outside, "\x1b[?1049h");
        let panicked = std::thread::spawn(|| panic!("as a bug would")).join();
        assert!(panicked.is_err() && !is_entered() && echoes(&inside));
        let left = read_until(&mut outside, "\x1b[?25h");
        assert!(left.contains("\x1b[?1049l"), "{left:?}");
        leave();
    }
}
