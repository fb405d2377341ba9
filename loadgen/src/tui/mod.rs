//! `--tui`: the run on a screen, drawn anew each second.
//!
//! Thread: the conductor's, between its looks at the workers; a slow terminal delays no request.

pub mod heat;
pub mod terminal;
pub mod view;

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsFd;

use ratatui::backend::CrosstermBackend;
use ratatui::{Terminal, TerminalOptions, Viewport};

pub use view::View;

/// A view on a terminal. Dropped, the terminal is what it was.
#[derive(Debug)]
pub struct Screen {
    pub view: View,
    file: File,
    terminal: Terminal<CrosstermBackend<BufWriter<File>>>,
}

impl Screen {
    /// Takes over the terminal of standard error.
    pub fn open(view: View) -> io::Result<Self> {
        Self::open_on(io::stderr().as_fd().try_clone_to_owned()?.into(), view)
    }

    fn open_on(file: File, view: View) -> io::Result<Self> {
        let out = CrosstermBackend::new(BufWriter::new(file.try_clone()?));
        let viewport = Viewport::Fixed(terminal::size(&file));
        terminal::enter(file.try_clone()?)?;
        let screen = Terminal::with_options(out, TerminalOptions { viewport })
            .map(|terminal| Self { view, file, terminal });
        let mut screen = screen.inspect_err(|_| terminal::leave())?;
        screen.draw();
        Ok(screen)
    }

    /// Draws the view. A terminal that is gone is no reason to end a run.
    pub fn draw(&mut self) {
        let size = terminal::size(&self.file);
        if size != self.terminal.current_buffer_mut().area {
            let _ = self.terminal.resize(size);
        }
        let view = &self.view;
        let _ = self.terminal.draw(|frame| view.draw(frame));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        terminal::leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{self, Second};
    use terminal::tests::{read_until, terminal, turn};

    #[test]
    fn a_screen_is_drawn_on_a_terminal_and_gone_when_it_is_dropped() {
        let _turn = turn();
        let (mut outside, inside) = terminal();
        let mut screen = Screen::open_on(inside, View::new("http://a".into(), 9.0)).unwrap();
        let mut second = Second::new(0);
        second.planned = 4_321;
        stats::record(&mut second.response, 5_000_000);
        screen.view.second(&second);
        screen.draw();
        assert!(read_until(&mut outside, "4,321").contains("http://a"));
        drop(screen);
        assert!(!terminal::is_entered());
        read_until(&mut outside, "\x1b[?1049l");
    }
}
