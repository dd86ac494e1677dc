//! The network device: what is opened on the host, put behind the queues of a virtio device.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use casita_devices::token_bucket::Rate;
use casita_devices::virtio::net::backend::Backend;
use casita_devices::virtio::net::stream::Stream;
use casita_devices::virtio::net::tap::Tap;
use casita_devices::virtio::net::vhost::VhostPair;
use casita_devices::virtio::net::{LinkState, MacAddress, Net, NetConfig, Traffic};

use super::NetError;
use super::dormant::{Dormant, Starter};
use super::passt::{OnEnd, Passt, Watch};
use super::tap::{Counters, Taken};
use super::wall::Walled;

const VHOST_NET: &str = "/dev/vhost-net";
/// The device's name in logs and for people.
const NAME: &str = "net";

/// What the device's frames go to.
#[derive(Debug)]
pub enum HostEnd {
    /// A process of the user's, and the gateways that it maps to the host's loopback.
    Passt(Passt, Vec<IpAddr>),
    /// The same, once the guest sends something.
    Dormant(UnixStream, Arc<dyn Starter>),
    /// A tap device.
    Tap(Taken),
}

/// A network device's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its address.
    pub mac: MacAddress,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// How much may go through it.
    pub rate: Option<Rate>,
}

/// A network device's hold on itself, for those who look at it while the machine runs. Dropping it
/// ends what serves the device.
#[derive(Debug)]
pub struct NetDevice {
    /// Whether the cable is in.
    pub link: LinkState,
    /// What has gone through it, if the monitor sees that.
    pub traffic: Arc<Traffic>,
    /// What has gone through it, if the host's kernel serves it.
    pub counters: Option<Counters>,
    /// Whether it does.
    pub vhost: bool,
    watch: Option<Watch>,
}

impl NetDevice {
    /// Starts the threads that it needs, now that there may be some.
    ///
    /// # Errors
    /// If the host has none left.
    pub fn start(&mut self) -> io::Result<()> {
        self.watch.as_mut().map_or(Ok(()), Watch::start)
    }

    /// The machine is about to go: that its device loses its other end is no news.
    pub fn expect_end(&self) {
        if let Some(watch) = &self.watch {
            watch.expect_end();
        }
    }
}

/// Puts what `wrap` decides on between the device and the host's end of it.
///
/// Everything that is to look at frames, or to keep some back, goes in here: it is the one place that
/// all back ends pass. What wraps anything must see all frames, so there is no vhost-net then.
pub type Wrap<'a> = &'a mut dyn FnMut(Box<dyn Backend>) -> Result<Box<dyn Backend>, NetError>;

/// Makes the device.
///
/// # Errors
/// If the host's end can't be used.
pub fn attach(
    end: HostEnd,
    settings: &Settings,
    wrap: Option<Wrap<'_>>,
) -> Result<(Net, NetDevice), NetError> {
    let config = NetConfig {
        mtu: settings.mtu,
        rate: settings.rate,
        // A flood of frames keeps nobody from his disk.
        dedicated_thread: true,
        ..NetConfig::new(settings.mac)
    };
    let free = wrap.is_none() && settings.rate.is_none();
    let mut wrap = wrap;
    let mut wrapped = |backend: Box<dyn Backend>| match &mut wrap {
        Some(wrap) => wrap(backend),
        None => Ok(backend),
    };
    match end {
        HostEnd::Passt(passt, gateways) => {
            // The link is the device's, which needs the socket first: it is known when both are.
            let (socket, watching) = passt.into_parts();
            let stream = Stream::new(socket).map_err(host("use a socket"))?;
            let walled = Walled::new(stream, gateways);
            let net = Net::new(NAME, &config, vec![wrapped(Box::new(walled))?])?;
            let watch = watching.watch(takes_down(net.link()))?;
            Ok(with_handles(net, None, false, Some(watch)))
        }
        HostEnd::Dormant(socket, starter) => {
            let stream = Stream::new(socket).map_err(host("use a socket"))?;
            // Without ports no gateway is mapped.
            let walled = Walled::new(Dormant::new(stream, starter), Vec::new());
            let net = Net::new(NAME, &config, vec![wrapped(Box::new(walled))?])?;
            Ok(with_handles(net, None, false, None))
        }
        HostEnd::Tap(tap) => {
            let kernel = if free {
                with_vhost(&config, &tap)?
            } else {
                None
            };
            let vhost = kernel.is_some();
            let net = if let Some(net) = kernel {
                net
            } else {
                let taps = tap.queues.into_iter().map(open_tap);
                let ends = taps.map(|tap| wrapped(Box::new(tap?)));
                Net::new(NAME, &config, ends.collect::<Result<_, _>>()?)?
            };
            Ok(with_handles(net, Some(tap.counters), vhost, None))
        }
    }
}

fn with_handles(
    net: Net,
    counters: Option<Counters>,
    vhost: bool,
    watch: Option<Watch>,
) -> (Net, NetDevice) {
    let device = NetDevice {
        link: net.link(),
        traffic: net.traffic(),
        counters: counters.filter(|_| vhost),
        vhost,
        watch,
    };
    (net, device)
}

/// What the end of a passt that serves the device means to it.
fn takes_down(link: LinkState) -> OnEnd {
    Box::new(move |_, why| {
        link.close(why);
        log::warn!("{why}; the guest's link is down from now on");
    })
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |error| NetError::Host(what, error)
}

fn open_tap(file: File) -> Result<Tap, NetError> {
    Tap::new(file).map_err(|error| NetError::Host("use a tap device", io::Error::other(error)))
}

/// A device that the host's kernel serves, if it does that.
fn with_vhost(config: &NetConfig, tap: &Taken) -> Result<Option<Net>, NetError> {
    let mut pairs = Vec::new();
    for queue in &tap.queues {
        let Ok(vhost) = File::options().read(true).write(true).open(VHOST_NET) else {
            return Ok(None);
        };
        let queue = queue.try_clone().map_err(host("duplicate a descriptor"))?;
        match VhostPair::new(vhost, open_tap(queue)?) {
            Ok(pair) => pairs.push(pair),
            Err(error) => {
                log::info!("{VHOST_NET} is not used: {error}");
                return Ok(None);
            }
        }
    }
    Ok(Some(Net::with_vhost(NAME, config, pairs)?))
}
