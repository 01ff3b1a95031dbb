-- One row for each name that is led by one replica at a time.
create table maestro.leases (
    name text primary key,
    holder text not null,
    -- grows with every change of the leader
    token bigint not null,
    expires_at timestamptz not null
);
