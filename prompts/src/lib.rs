//! What an agent is told before its user speaks: prompt policies composed into one system prompt, and text from
//! outside screened for injections. Pure: no client, no clock, no network.
