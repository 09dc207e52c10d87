//! Migrations are embedded; cargo has to notice a new file among them.
fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
