-- PostgreSQL's image runs this once, on an empty volume. It creates the role that owns trio-runner's database; the role is no
-- superuser.
\getenv password POSTGRES_PASSWORD
CREATE ROLE trio_runner LOGIN PASSWORD :'password';
CREATE DATABASE trio_runner OWNER trio_runner;
-- Without a password the superuser can still connect by the socket inside the container, but not over the network.
ALTER ROLE postgres PASSWORD NULL;
