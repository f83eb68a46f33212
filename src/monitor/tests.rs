use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::control::frame::Fault;
use crate::control::receive::Message;

const FRAME: &[u8] = b"\0\0\0\x04\x80\x04N.";

fn monitor() -> (Monitor, Waker, UnixStream) {
    let (publisher, subscriber) = UnixStream::pair().unwrap();
    let (monitor, waker) = Monitor::new(subscriber.as_fd(), None).unwrap();
    (monitor, waker, publisher)
}

fn wait(monitor: &mut Monitor, deadline: Option<Instant>) -> Events {
    while !monitor.wait(deadline, true).unwrap() {}
    monitor.take_events()
}

fn look(monitor: &mut Monitor) -> Events {
    wait(monitor, Some(Instant::now()))
}

fn watch(monitor: &mut Monitor, child: &Child) -> i32 {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: there is no sentinel.
    unsafe { monitor.watch(b"w", pid, None) }.unwrap();
    pid
}

fn shell(script: &str, publisher: &UnixStream) -> Child {
    let publisher = OwnedFd::from(publisher.try_clone().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::from(publisher));
    command.spawn().unwrap()
}

#[test]
fn a_message_names_its_sender() {
    let (mut monitor, _waker, mut publisher) = monitor();
    publisher.write_all(FRAME).unwrap();
    let sender = cfg!(target_os = "linux").then(|| i32::try_from(std::process::id()).unwrap());
    publisher.write_all(FRAME).unwrap();
    let message = |payload| Message {
        sender,
        payload: Ok(payload),
    };
    let wanted = Events {
        received: Batch {
            messages: vec![message(0..4), message(4..8)],
            bytes: [&FRAME[4..], &FRAME[4..]].concat(),
        },
        exits: Vec::new(),
    };
    assert_eq!(monitor.wait(None, true), Ok(true));
    assert_eq!(wait(&mut monitor, None), wanted);
}

#[test]
fn a_part_of_a_frame_is_no_event() {
    let (mut monitor, _waker, mut publisher) = monitor();
    publisher.write_all(&FRAME[..5]).unwrap();
    assert_eq!(monitor.wait(None, true), Ok(false));
    assert_eq!(look(&mut monitor), Events::default());
    publisher.write_all(&FRAME[5..]).unwrap();
    assert_eq!(wait(&mut monitor, None).received.messages.len(), 1);
}

#[test]
fn a_wait_ends_at_its_deadline_or_with_a_wakeup() {
    let (mut monitor, waker, _publisher) = monitor();
    let begun = Instant::now();
    let pause = Duration::from_millis(20);
    assert_eq!(wait(&mut monitor, Some(begun + pause)), Events::default());
    assert!(begun.elapsed() >= pause);
    waker.wake();
    waker.wake();
    assert_eq!(wait(&mut monitor, None), Events::default());
    assert_eq!(look(&mut monitor), Events::default());
    waker.wake();
    assert_eq!(wait(&mut monitor, None), Events::default());
}

#[test]
#[cfg(target_os = "linux")]
fn an_exit_comes_last_and_leaves_the_child_unreaped() {
    for (end, code) in [("exit 3", 3), ("kill -9 $$", -9)] {
        let (mut monitor, _waker, publisher) = monitor();
        let script =
            format!("printf '\\000\\000\\000\\004\\200\\004N.\\000\\000\\000\\011ab'; {end}");
        let mut child = shell(&script, &publisher);
        let pid = watch(&mut monitor, &child);
        let (mut messages, mut exits) = (Vec::new(), Vec::new());
        while exits.is_empty() {
            let events = wait(&mut monitor, None);
            messages.extend(events.received.messages);
            exits.extend(events.exits);
        }
        let fault = Fault {
            reason: "2 bytes of an unfinished frame of 9 bytes; its writer is gone".to_owned(),
            sample: b"\0\0\0\x09ab".to_vec(),
        };
        let wanted = [Ok(0..4), Err(fault)].map(|payload| Message {
            sender: Some(pid),
            payload,
        });
        assert_eq!(messages, wanted);
        let exit = Exit {
            key: b"w".to_vec(),
            pid,
            code: Some(code),
        };
        assert_eq!(exits, [exit]);
        assert!(!monitor.unwatch(b"w"));
        assert_eq!(child.wait().unwrap().success(), code == 0);
    }
}

#[test]
fn the_end_of_the_channel_is_reported_once() {
    let (mut monitor, _waker, publisher) = monitor();
    drop(publisher);
    let messages = wait(&mut monitor, None).received.messages;
    assert!(matches!(
        messages[..],
        [Message {
            sender: None,
            payload: Err(_)
        }]
    ));
    assert_eq!(look(&mut monitor), Events::default());
}

#[test]
fn a_key_is_watched_once() {
    let (mut monitor, _waker, publisher) = monitor();
    let mut child = shell("read line", &publisher);
    let pid = watch(&mut monitor, &child);
    // SAFETY: there is no sentinel.
    let again = unsafe { monitor.watch(b"w", pid, None) };
    assert_eq!(again, Err(WatchError::Duplicate));
    // SAFETY: as above.
    let none = unsafe { monitor.watch(b"x", 0, None) };
    assert_eq!(none, Err(WatchError::NoPid));
    assert!(monitor.unwatch(b"w"));
    assert!(!monitor.unwatch(b"w"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(look(&mut monitor), Events::default());
}
