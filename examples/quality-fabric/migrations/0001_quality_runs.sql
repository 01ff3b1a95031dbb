create table quality_runs (
    id           uuid primary key,
    project      text not null,
    suite        text not null,
    state        text not null default 'requested' check (state in ('requested', 'completed')),
    score        integer,
    requested_at timestamptz not null default now(),
    completed_at timestamptz
);
create index quality_runs_by_project on quality_runs (project, requested_at desc);
