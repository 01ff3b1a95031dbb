//! What the servers are told, wherever they run.

/// Databases of a Redis of ours: each sandbox takes one at random.
const REDIS_DATABASES: u16 = 64;

/// RabbitMQ's idle schedulers would spin for work, on a machine that has other work.
pub(crate) const ERLANG_ARGUMENTS: &str = "+sbwt none +sbwtdcpu none +sbwtdio none";

/// Settings of PostgreSQL as `-c name=value`. `durable` keeps what was acknowledged over a kill.
pub(crate) fn postgres(durable: bool) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        // 50 sandboxes at once with pools of a few connections each.
        ("max_connections", "400"),
        // A file in the data directory instead of /dev/shm, which a kill would leave behind and
        // which containers keep at 64 MB.
        ("dynamic_shared_memory_type", "mmap"),
        ("jit", "off"),
        ("log_timezone", "UTC"),
    ];
    if !durable {
        settings.extend([
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
        ]);
    }
    settings
}

/// Configuration file of Redis. A file, not arguments: everybody sees arguments.
pub(crate) fn redis(durable: bool, password: &str) -> String {
    let durability = if durable {
        // What was acknowledged is on the disk.
        "appendonly yes\nappendfsync always\n"
    } else {
        "appendonly no\n"
    };
    format!(
        "daemonize no\ndatabases {REDIS_DATABASES}\nrequirepass {password}\nsave \"\"\n{durability}"
    )
}

/// Configuration file of RabbitMQ, with its administrator.
pub(crate) fn rabbitmq(user: &str, password: &str) -> String {
    format!(
        "default_user = {user}\ndefault_pass = {password}\nloopback_users = none\n\
         collect_statistics_interval = 1000\n\
         disk_free_limit.absolute = 50MB\n\
         raft.wal_max_size_bytes = 33554432\n"
    )
}
