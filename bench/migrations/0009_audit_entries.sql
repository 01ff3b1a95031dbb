create table audit_entries (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index audit_entries_by_tenant on audit_entries (tenant, created_at);
