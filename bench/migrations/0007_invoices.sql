create table invoices (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index invoices_by_tenant on invoices (tenant, created_at);
