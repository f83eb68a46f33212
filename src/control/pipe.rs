//! The receiving end of the control channel. Each read returns bytes and, where the kernel names it, their
//! sender.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result, retry_on_intr};

/// The receiving end of the control channel.
#[derive(Debug)]
pub enum Pipe {
    /// A Unix stream socket that passes credentials. No read mixes the bytes of two senders, and each read
    /// names its sender.
    #[cfg(target_os = "linux")]
    Socket(OwnedFd),
    /// Any other descriptor that can be polled and read: one stream, its senders unknown.
    Stream(OwnedFd),
}

impl Pipe {
    /// Wrap `fd`; make a Unix stream socket pass credentials.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        #[cfg(target_os = "linux")]
        if is_unix_stream(&fd)? {
            rustix::net::sockopt::set_socket_passcred(&fd, true)?;
            return Ok(Self::Socket(fd));
        }
        Ok(Self::Stream(fd))
    }

    /// Read without blocking; return the number of bytes (0 at the end) and the sender's pid.
    pub fn read(&self, buffer: &mut [u8]) -> Result<(usize, Option<i32>)> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Socket(fd) => retry_on_intr(|| credentials::receive(fd.as_fd(), buffer)),
            Self::Stream(fd) => {
                // O_NONBLOCK would hold for every process that shares the pipe. Leave it alone, and poll
                // first.
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                if retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? == 0 {
                    return Err(Errno::AGAIN);
                }
                let size = retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?;
                Ok((size, None))
            }
        }
    }

    /// Return the number of bytes that can be read now.
    pub fn queued(&self) -> Result<usize> {
        let size = rustix::io::ioctl_fionread(self)?;
        Ok(usize::try_from(size).unwrap_or(usize::MAX))
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Socket(fd) => fd.as_fd(),
            Self::Stream(fd) => fd.as_fd(),
        }
    }
}

#[cfg(target_os = "linux")]
fn is_unix_stream(fd: &OwnedFd) -> Result<bool> {
    use rustix::net::{AddressFamily, SocketType, sockopt};

    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => Ok(sockopt::socket_type(fd)? == SocketType::STREAM),
        Ok(_) | Err(Errno::NOTSOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(target_os = "linux")]
mod credentials {
    //! `recvmsg` by hand. rustix takes a pid of 0 for impossible, but the kernel reports 0 for a sender
    //! without a pid in this namespace, and for bytes written before the option was set.

    use std::mem::{offset_of, size_of, size_of_val, zeroed};
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::ptr;

    use rustix::io::{Errno, Result};

    /// Space for the credentials alone, so that the kernel drops descriptors that are sent along.
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        credentials: libc::ucred,
    }

    const LENGTH: usize = offset_of!(Control, credentials) + size_of::<libc::ucred>();

    pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Option<i32>)> {
        let mut bytes = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: both are plain C data, for which all zeros is a valid value.
        let (mut control, mut message): (Control, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        message.msg_iov = &raw mut bytes;
        message.msg_iovlen = 1;
        message.msg_control = ptr::from_mut(&mut control).cast();
        message.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the message points to `buffer` and `control` with their exact sizes. Both outlive the call,
        // which keeps no pointer to them.
        let size = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
        let Ok(size) = usize::try_from(size) else {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        };
        let named = control.header.cmsg_level == libc::SOL_SOCKET
            && control.header.cmsg_type == libc::SCM_CREDENTIALS
            && control.header.cmsg_len >= LENGTH as _;
        let pid = control.credentials.pid;
        Ok((size, (named && pid != 0).then_some(pid)))
    }
}
