create table widgets (id integer primary key);
