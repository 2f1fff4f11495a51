//! One binary; each module is one promise or one path through the product.

mod acts;
mod agent;
mod approval;
mod budgets;
mod check;
mod cli;
mod cost;
mod dev;
mod enforced;
mod failing;
mod hardware;
mod narrowing;
mod oracle;
mod people;
mod processes;
mod races;
mod record;
mod rules;
mod schema;
mod secrets;
mod sign;
mod stop;
mod stop_attacks;
mod surface;
mod tampering;
mod toolbox;
