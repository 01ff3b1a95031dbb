//! RabbitMQ nodes of the test's own, for what no shared server can be asked: a cluster.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use maestro_testkit::{Port, tied};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::within;

/// Nodes on loopback, one cluster; all end with it.
pub struct Nodes {
    directory: TempDir,
    /// Of Erlang's port mapper.
    mapper: Port,
    /// Beside the nodes, or the first one would leave a daemon behind.
    _epmd: Child,
    pub all: Vec<Node>,
}

pub struct Node {
    pub port: u16,
    /// That of its clients and that of the other nodes: nobody else gets them while it is down to be
    /// started again.
    _reserved: [Port; 2],
    environment: BTreeMap<&'static str, OsString>,
    child: Option<Child>,
}

const BINARIES: &str = "/usr/lib/rabbitmq/bin";

impl Nodes {
    /// Starts so many nodes.
    pub async fn start(count: usize) -> Self {
        assert!(
            Path::new(BINARIES).join("rabbitmq-server").exists(),
            "this test starts RabbitMQ nodes: install rabbitmq-server"
        );
        let directory = tempfile::tempdir().unwrap();
        let mapper = Port::reserve().unwrap();
        let number = mapper.number();
        let epmd = Command::from(tied("epmd"))
            .args(["-port", &number.to_string(), "-address", "127.0.0.1"])
            .kill_on_drop(true)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        within(
            Duration::from_mins(1),
            "the port mapper answers",
            || async { TcpStream::connect(("127.0.0.1", number)).await.is_ok() },
        )
        .await;
        // One secret for all, or they do not talk to each other.
        let cookie = directory.path().join(".erlang.cookie");
        std::fs::write(&cookie, "maestro-nodes").unwrap();
        std::fs::set_permissions(&cookie, PermissionsExt::from_mode(0o400)).unwrap();
        let mut nodes = Self {
            directory,
            mapper,
            _epmd: epmd,
            all: Vec::new(),
        };
        let ports: Vec<[Port; 2]> = (0..count)
            .map(|_| [(); 2].map(|()| Port::reserve().unwrap()))
            .collect();
        let names: Vec<_> = ports
            .iter()
            .map(|[port, _]| format!("n{}@localhost", port.number()))
            .collect();
        for (reserved, name) in ports.into_iter().zip(&names) {
            let node = nodes.prepare(reserved, name, &names);
            nodes.all.push(node);
        }
        for node in &mut nodes.all {
            node.spawn();
        }
        for node in &nodes.all {
            node.ready().await;
        }
        if count > 1 {
            let all = count.to_string();
            nodes.all[0].control(&["await_online_nodes", &all]).await;
        }
        nodes
    }

    fn prepare(&self, reserved: [Port; 2], name: &str, names: &[String]) -> Node {
        let [port, distribution] = reserved.each_ref().map(Port::number);
        let home = self.directory.path().join(name);
        std::fs::create_dir(&home).unwrap();
        let mut text = "loopback_users = none\ndisk_free_limit.absolute = 50MB\n\
             raft.wal_max_size_bytes = 33554432\n"
            .to_owned();
        if names.len() > 1 {
            text.push_str("cluster_formation.peer_discovery_backend = classic_config\n");
            for (index, name) in names.iter().enumerate() {
                let line = format!("cluster_formation.classic_config.nodes.{index} = {name}\n");
                text.push_str(&line);
            }
        }
        let file = home.join("rabbitmq.conf");
        std::fs::write(&file, text).unwrap();
        let plugins = home.join("enabled_plugins");
        std::fs::write(&plugins, "[].\n").unwrap();
        let inside = |name: &str| home.join(name).into_os_string();
        let environment = BTreeMap::from([
            ("HOME", self.directory.path().into()),
            ("LC_ALL", "C.UTF-8".into()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_NODENAME", name.into()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODE_PORT", port.to_string().into()),
            ("RABBITMQ_DIST_PORT", distribution.to_string().into()),
            ("ERL_EPMD_PORT", self.mapper.number().to_string().into()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_MNESIA_BASE", inside("data")),
            ("RABBITMQ_LOG_BASE", inside("logs")),
            ("RABBITMQ_CONFIG_FILE", file.into()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", plugins.into()),
            ("RABBITMQ_PID_FILE", inside("rabbitmq.pid")),
            // With a socket to notify the script becomes the server, so its pid is the server's.
            ("NOTIFY_SOCKET", inside("notify")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none".into(),
            ),
        ]);
        Node {
            port,
            _reserved: reserved,
            environment,
            child: None,
        }
    }
}

impl Node {
    /// `kill -9`.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }

    /// Starts it again with its data, and waits until it answers.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    pub async fn control(&self, arguments: &[&str]) {
        let mut command = self.command("rabbitmqctl");
        let output = command.args(arguments).output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn spawn(&mut self) {
        let mut command = self.command("rabbitmq-server");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::from(tied(PathBuf::from(BINARIES).join(program)));
        command.envs(&self.environment).kill_on_drop(true);
        command
    }

    async fn ready(&self) {
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2F", self.port);
        within(Duration::from_mins(2), "the node answers", || async {
            // The driver waits without end for a node that goes on booting meanwhile.
            let answer = tokio::time::timeout(Duration::from_secs(10), async {
                let properties = lapin::ConnectionProperties::default();
                let connection = lapin::Connection::connect(&url, properties).await?;
                connection.close(200, "seen".into()).await
            });
            matches!(answer.await, Ok(Ok(())))
        })
        .await;
    }
}
