-- For databases whose tenants have schemas of their own. Runs as the database's owner.

-- Every table of the schema belongs to this tenant alone from now on, also when it is named in full in
-- another tenant's transaction or without any tenant.
create function maestro.protect_schema(target name, tenant_id text) returns void language plpgsql as $$
declare
    found record;
begin
    for found in
        select c.oid::regclass as name, c.relforcerowsecurity and exists (
            select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'maestro_tenant') as done
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = target and c.relkind in ('r', 'p')
    loop
        continue when found.done;
        execute format('alter table %s enable row level security', found.name);
        execute format('alter table %s force row level security', found.name);
        execute format('drop policy if exists maestro_tenant on %s', found.name);
        execute format(
            'create policy maestro_tenant on %s using ((select maestro.tenant()) = %L) with check ((select maestro.tenant()) = %L)',
            found.name, tenant_id, tenant_id);
    end loop;
end
$$;
