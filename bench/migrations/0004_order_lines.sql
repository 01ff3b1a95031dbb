create table order_lines (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index order_lines_by_tenant on order_lines (tenant, created_at);
