-- What the conductor knows how to run. `fails_first` makes the first attempts of a run fail, which is
-- how the retry ladder is shown.
create table suites (
    name        text primary key,
    fails_first integer not null default 0 check (fails_first >= 0)
);

create table executions (
    run_id      uuid primary key,
    suite       text not null references suites (name),
    score       integer not null,
    attempts    integer not null,
    executed_at timestamptz not null default now()
);
