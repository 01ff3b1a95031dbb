create table settings (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index settings_by_tenant on settings (tenant, created_at);
