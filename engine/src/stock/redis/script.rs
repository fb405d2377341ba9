//! The scripts, how an ask becomes a call of one, and how its answer is read.

use std::sync::LazyLock;

use redis::{Cmd, Script, Value};

use super::endpoint::Endpoint;
use crate::stock::ask::{Asker, Epoch, HomeStanding, PoolAnswer, PoolAsk, PoolRefusal, PoolView};
use crate::units::{Incarnation, JournalId, KeyHash};

/// Which script an ask is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScriptName {
    Create,
    Join,
    Grant,
    Tell,
    Total,
    Withdraw,
    Inspect,
}

macro_rules! text {
    ($file:literal) => {
        concat!(include_str!("common.lua"), include_str!($file))
    };
}

impl ScriptName {
    pub const ALL: [Self; 7] = [
        Self::Create,
        Self::Join,
        Self::Grant,
        Self::Tell,
        Self::Total,
        Self::Withdraw,
        Self::Inspect,
    ];

    pub const fn of(ask: &PoolAsk) -> Self {
        match ask {
            PoolAsk::Create { .. } => Self::Create,
            PoolAsk::Join { .. } => Self::Join,
            PoolAsk::Grant { .. } => Self::Grant,
            PoolAsk::Tell => Self::Tell,
            PoolAsk::Total { .. } => Self::Total,
            PoolAsk::Withdraw { .. } => Self::Withdraw,
            PoolAsk::Inspect => Self::Inspect,
        }
    }

    /// For metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Join => "join",
            Self::Grant => "grant",
            Self::Tell => "tell",
            Self::Total => "total",
            Self::Withdraw => "withdraw",
            Self::Inspect => "inspect",
        }
    }

    /// The whole of it, as Redis gets it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Create => text!("create.lua"),
            Self::Join => text!("join.lua"),
            Self::Grant => text!("grant.lua"),
            Self::Tell => text!("tell.lua"),
            Self::Total => text!("total.lua"),
            Self::Withdraw => text!("withdraw.lua"),
            Self::Inspect => text!("inspect.lua"),
        }
    }

    /// Its SHA-1, as Redis knows it.
    pub fn hash(self) -> &'static str {
        static HASHES: LazyLock<[String; 7]> = LazyLock::new(|| {
            ScriptName::ALL.map(|name| Script::new(name.text()).get_hash().to_owned())
        });
        &HASHES[self as usize]
    }
}

/// The largest number that Lua's doubles hold exactly.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// One call of a script.
#[derive(Clone, Debug)]
pub struct Call {
    pub script: ScriptName,
    key: String,
    args: Vec<String>,
}

impl Call {
    /// `name`: what all nodes call the asker's item.
    pub fn new(endpoint: &Endpoint, name: &str, asker: &Asker, ask: &PoolAsk) -> Self {
        let number = |n: u64| n.min(NUMBER_MAX).to_string();
        let standing = &asker.standing;
        let mut args = vec![
            endpoint.channel(),
            name.to_owned(),
            journal_text(asker.journal),
            asker.incarnation.to_string(),
            asker.epoch.number.to_string(),
            hash_text(asker.epoch.server),
            number(standing.accepted),
            number(standing.returned),
            number(standing.confirmed),
            number(standing.unconfirmed),
        ];
        let listed = |home: &HomeStanding| match &home.journals {
            None => String::from("-"),
            Some(journals) => journals.iter().map(|j| journal_text(*j) + ",").collect(),
        };
        match ask {
            PoolAsk::Create { home } => {
                args.extend([number(home.added), number(home.withdrawn), listed(home)]);
            }
            PoolAsk::Join { home, bump_above } => {
                args.push(bump_above.to_string());
                match home {
                    None => args.extend(["0", "0", "0", "-"].map(String::from)),
                    Some(h) => {
                        let own = ["1".into(), number(h.added), number(h.withdrawn), listed(h)];
                        args.extend(own);
                    }
                }
            }
            PoolAsk::Grant { from, up_to, need, nodes, max } => {
                args.extend([*from, *up_to, *need].map(number));
                args.extend([nodes.to_string(), number(*max)]);
            }
            PoolAsk::Total { added } => args.push(number(*added)),
            PoolAsk::Withdraw { from, up_to, key } => {
                args.extend([number(*from), number(*up_to), hash_text(*key)]);
            }
            PoolAsk::Tell | PoolAsk::Inspect => {}
        }
        Self { script: ScriptName::of(ask), key: endpoint.key(name), args }
    }

    pub fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", self.script.hash())
    }

    /// The server keeps the text, so the next call is by hash again.
    pub fn by_text(&self) -> Cmd {
        self.command("EVAL", self.script.text())
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(1).arg(&self.key).arg(&self.args);
        command
    }
}

/// A journal as keys and fields name it.
pub fn journal_text(journal: JournalId) -> String {
    format!("{:016x}", journal.get())
}

fn hash_text(hash: KeyHash) -> String {
    format!("{:032x}", hash.get())
}

/// Reads what a script answered.
///
/// Errors: it is not an answer of these scripts.
pub fn read(asker: &Asker, asked: PoolAsk, value: &Value) -> Result<PoolAnswer, String> {
    let mut fields = Fields::of(value)?;
    let refusal = fields.text()?.to_owned();
    let (x, y) = (fields.number()?, fields.number()?);
    let number = fields.number()?;
    let number = u32::try_from(number).map_err(|_| format!("epoch {number} is too large"))?;
    let view = PoolView {
        epoch: Epoch { number, server: fields.hash()? },
        is_open: fields.flag()?,
        reported: fields.number()?.try_into().unwrap_or(u32::MAX),
        added: fields.number()?,
        withdrawn: fields.number()?,
        withdraw_key: fields.hash()?,
        pool: fields.number()?,
        granted: fields.number()?,
        returned: fields.number()?,
        confirmed_elsewhere: fields.number()?,
        is_sold_out: fields.flag()?,
        generation: fields.number()?,
        wanted: fields.number()?,
    };
    let refusal = match refusal.as_str() {
        "" => None,
        "epoch" => Some(PoolRefusal::Epoch),
        "lost" => Some(PoolRefusal::Lost),
        "not-joined" => Some(PoolRefusal::NotJoined),
        "fenced" => {
            let incarnation = Incarnation::new(x.try_into().unwrap_or(u32::MAX));
            Some(PoolRefusal::Fenced { incarnation })
        }
        "old-copy" => Some(PoolRefusal::OldCopy { accepted: x, returned: y }),
        other => return Err(format!("a refusal that is not ours: {other:?}")),
    };
    Ok(PoolAnswer { asker: *asker, asked, view: Some(view), refusal })
}

/// The answer's fields, taken one after the other.
struct Fields<'a> {
    rest: std::slice::Iter<'a, Value>,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value) -> Result<Self, String> {
        match value {
            Value::Array(fields) => Ok(Self { rest: fields.iter() }),
            other => Err(format!("not an answer of a script of ours: {other:?}")),
        }
    }

    fn next(&mut self) -> Result<&'a Value, String> {
        self.rest.next().ok_or_else(|| String::from("an answer with too few fields"))
    }

    fn number(&mut self) -> Result<u64, String> {
        match self.next()? {
            Value::Int(number) => u64::try_from(*number).map_err(|_| format!("{number} units")),
            other => Err(format!("{other:?} where a number should be")),
        }
    }

    fn flag(&mut self) -> Result<bool, String> {
        self.number().map(|number| number != 0)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        match self.next()? {
            Value::BulkString(bytes) => {
                std::str::from_utf8(bytes).map_err(|_| String::from("a text that is none"))
            }
            other => Err(format!("{other:?} where a text should be")),
        }
    }

    fn hash(&mut self) -> Result<KeyHash, String> {
        match self.text()? {
            "" => Ok(KeyHash::default()),
            text => u128::from_str_radix(text, 16)
                .map(KeyHash::new)
                .map_err(|_| format!("{text:?} where a fingerprint should be")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RedisConfig;
    use crate::stock::redis::link::nobody;

    fn text(call: &Call) -> String {
        String::from_utf8(call.by_hash().get_packed_command()).unwrap()
    }

    #[test]
    fn every_script_has_its_own_text_and_place() {
        let mut hashes: Vec<_> = ScriptName::ALL.iter().map(|name| name.hash()).collect();
        for (index, name) in ScriptName::ALL.into_iter().enumerate() {
            assert_eq!(name as usize, index);
            assert_eq!(name.hash().len(), 40);
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), ScriptName::ALL.len());
    }

    #[test]
    fn numbers_are_cut_to_what_lua_holds_exactly() {
        let endpoint = Endpoint::new(&RedisConfig::default()).unwrap();
        let (up_to, need) = (u64::MAX, 2);
        let ask = PoolAsk::Grant { from: 1, up_to, need, nodes: 3, max: u64::MAX };
        let sent = text(&Call::new(&endpoint, "s/k", &nobody(), &ask));
        assert_eq!(sent.matches("9007199254740991").count(), 2, "{sent}");
        assert!(sent.contains("onrush:{s/k}"), "{sent}");
    }

    #[test]
    fn a_foreign_answer_is_no_answer() {
        for value in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(1)])] {
            assert!(read(&nobody(), PoolAsk::Tell, &value).is_err());
        }
    }
}
