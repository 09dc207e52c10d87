-- How much text a session has pushed, so that a budget per organization is checked without reading it all again.
-- Sessions from before this count as empty until they push again.
alter table sessions add column transcript_bytes bigint not null default 0;
alter table sessions add constraint sessions_transcript_bytes_positive check (transcript_bytes >= 0);
