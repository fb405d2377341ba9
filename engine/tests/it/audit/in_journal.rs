//! Journals with right checksums and wrong records: each is found by the journal alone.

use onrush::audit::finding::{Check, Where};
use onrush::kernel::record::{CONTROL, Record, Redeemed, SaleChange};
use onrush::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex,
    Seq, Slot,
};

use super::world::{BAG, Line, MUG, PEN};
use super::{assert_found, folder, right};

/// Changes the history; says by which check, and where, that must be found.
type Tamper = fn(&mut Vec<Line>) -> (Check, Where);

/// The first place, from `from` on, whose record is as asked.
fn find(lines: &[Line], from: usize, is: impl Fn(&Record) -> bool) -> usize {
    from + lines[from..].iter().position(|line| is(&line.record())).unwrap()
}

fn seq(at: usize) -> Seq {
    Seq::new(at as u64 + 1)
}

/// Changes the first record that `change` says yes to.
fn edit(lines: &mut [Line], mut change: impl FnMut(&mut Record) -> bool) -> (Seq, Record) {
    for (at, line) in lines.iter_mut().enumerate() {
        let mut record = line.record();
        if change(&mut record) {
            line.set(&record);
            return (seq(at), record);
        }
    }
    panic!("no such record");
}

fn edit_redeemed(lines: &mut [Line], mut change: impl FnMut(&mut Redeemed)) -> (Seq, Redeemed) {
    let (seq, record) = edit(lines, |record| {
        let Record::Redeemed(r) = record else { return false };
        change(r);
        true
    });
    let Record::Redeemed(r) = record else { unreachable!() };
    (seq, r)
}

fn of(seq: Seq, r: &Redeemed) -> Where {
    Where { slot: None, ..Where::redemption(r.id).with_member(r.member).with_seq(seq) }
}

fn plus(points: Points, more: u64) -> Points {
    Points::new(points.get() + more)
}

fn member_of(record: &Record) -> Option<MemberId> {
    match record {
        Record::Opened(r) => Some(r.member),
        Record::Held(r) => Some(r.member),
        Record::Redeemed(r) => Some(r.member),
        Record::Confirmed(r) => Some(r.member),
        Record::Released(r) => Some(r.member),
        _ => None,
    }
}

/// An id with one part changed.
fn renumbered(id: RedemptionId, slot: Slot, number: u64) -> RedemptionId {
    let journal = JournalId::new((id.get() as u64 >> RedemptionId::SLOT_SEQ_BITS) & 0xf_ffff);
    RedemptionId::new(id.at(), slot, journal, number)
}

/// A redemption at the journal's end that fits in all but what is asked for.
fn append(lines: &mut Vec<Line>, item: ItemIndex, quantity: u32, price: u64) -> (Seq, Redeemed) {
    let points = Points::new(u64::from(quantity) * price);
    let last = lines.iter().rev().find_map(|line| match line.record() {
        Record::Redeemed(r) if r.item == item && r.free_after > points => Some(r),
        _ => None,
    });
    let last = last.unwrap();
    let slot = Slot::of(last.member);
    let mut free_after = last.free_after;
    let (mut held_after, mut number) = (Points::ZERO, 0);
    for record in lines.iter().filter(|line| line.slot == slot).map(Line::record) {
        if let Record::Held(_) | Record::Redeemed(_) = record {
            number += 1;
        }
        if member_of(&record) == Some(last.member) {
            let after = match record {
                Record::Held(r) => (r.free_after, r.held_after),
                Record::Redeemed(r) => (r.free_after, r.held_after),
                Record::Confirmed(r) => (r.free_after, r.held_after),
                Record::Released(r) => (r.free_after, r.held_after),
                _ => continue,
            };
            (free_after, held_after) = after;
        }
    }
    let record = Redeemed {
        id: renumbered(last.id, slot, number),
        key: KeyHash::of(b"appended"),
        quantity: Quantity::new(quantity),
        points,
        free_after: free_after.checked_sub(points).unwrap(),
        held_after,
        ..last
    };
    let mut line = lines.last().unwrap().clone();
    line.slot = slot;
    line.set(&record.clone().into());
    lines.push(line);
    (seq(lines.len() - 1), record)
}

const TAMPERED: &[(&str, Tamper)] = &[
    ("points of a redemption", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| r.points = plus(r.points, 1));
        (Check::I3, of(seq, &r))
    }),
    ("points and balance of a redemption, both", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| {
            r.points = plus(r.points, 1);
            r.free_after = r.free_after.checked_sub(Points::new(1)).unwrap();
        });
        (Check::Rules, of(seq, &r))
    }),
    ("units of a redemption", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| r.quantity = Quantity::new(9));
        (Check::Rules, of(seq, &r).with_item(r.item))
    }),
    ("the balance after a credit", |lines| {
        let (seq, record) = edit(lines, |record| match record {
            Record::Credited(r) => {
                r.free_after = plus(r.free_after, 1_000);
                true
            }
            _ => false,
        });
        let Record::Credited(r) = record else { unreachable!() };
        (Check::I3, Where::member(r.member).with_seq(seq))
    }),
    ("the held points after a hold", |lines| {
        let (seq, record) = edit(lines, |record| match record {
            Record::Held(r) => {
                r.held_after = plus(r.held_after, 5);
                true
            }
            _ => false,
        });
        let Record::Held(r) = record else { unreachable!() };
        (Check::I3, Where::member(r.member).with_redemption(r.id).with_seq(seq))
    }),
    ("an id of another slot", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| {
            let other = Slot::new((r.id.slot().get() + 1) % 4096);
            r.id = renumbered(r.id, other, r.id.slot_seq());
        });
        (Check::Journal, of(seq, &r))
    }),
    ("an id with a number left out", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| {
            r.id = renumbered(r.id, r.id.slot(), r.id.slot_seq() + 3);
        });
        (Check::Journal, of(seq, &r))
    }),
    ("an id of another journal", |lines| {
        let (seq, r) = edit_redeemed(lines, |r| {
            r.id = RedemptionId::from_u128(r.id.get() ^ 1 << RedemptionId::SLOT_SEQ_BITS).unwrap();
        });
        (Check::Journal, of(seq, &r))
    }),
    ("a redemption twice", |lines| {
        let at = find(lines, 0, |r| matches!(r, Record::Redeemed(_)));
        lines.insert(at + 1, lines[at].clone());
        let Record::Redeemed(r) = lines[at].record() else { unreachable!() };
        (Check::Journal, of(seq(at + 1), &r))
    }),
    ("a request key twice", |lines| {
        let first = find(lines, 0, |r| matches!(r, Record::Redeemed(_)));
        let Record::Redeemed(one) = lines[first].record() else { unreachable!() };
        let again = find(lines, first + 1, |r| match r {
            Record::Redeemed(r) => r.member == one.member,
            _ => false,
        });
        let Record::Redeemed(mut two) = lines[again].record() else { unreachable!() };
        two.key = one.key;
        lines[again].set(&two.clone().into());
        (Check::I6, of(seq(again), &two))
    }),
    ("an operator's key twice", |lines| {
        let at = find(lines, 0, |r| matches!(r, Record::Credited(_)));
        let Record::Credited(credit) = lines[at].record() else { unreachable!() };
        let (seq, _) = edit(lines, |record| match record {
            Record::Debited(r) if r.member == credit.member => {
                r.key = credit.key;
                true
            }
            _ => false,
        });
        (Check::I6, Where::member(credit.member).with_seq(seq))
    }),
    ("a redemption left out", |lines| {
        let at = find(lines, 0, |r| matches!(r, Record::Redeemed(_)));
        let member = member_of(&lines.remove(at).record()).unwrap();
        let next = find(lines, at, |r| member_of(r) == Some(member));
        (Check::I3, Where::member(member).with_seq(seq(next)))
    }),
    ("an opening left out", |lines| {
        let at = find(lines, 5, |r| matches!(r, Record::Opened(_)));
        let member = member_of(&lines.remove(at).record()).unwrap();
        (Check::I3, Where::member(member))
    }),
    ("an account opened again", |lines| {
        let at = find(lines, 5, |r| matches!(r, Record::Opened(_)));
        let member = member_of(&lines[at].record()).unwrap();
        let again = lines.len();
        let line = Line { opening: 2, at: lines[again - 1].at, ..lines[at].clone() };
        lines.push(line);
        (Check::I3, Where::member(member).with_seq(seq(again)))
    }),
    ("a hold released twice", |lines| {
        let at = find(lines, 0, |r| matches!(r, Record::Released(_)));
        lines.insert(at + 1, lines[at].clone());
        let Record::Released(r) = lines[at].record() else { unreachable!() };
        (Check::Rules, Where::redemption(r.id).with_member(r.member).with_seq(seq(at + 1)))
    }),
    ("a hold confirmed after its release", |lines| {
        let at = find(lines, 0, |r| matches!(r, Record::Released(_)));
        let Record::Released(r) = lines[at].record() else { unreachable!() };
        let confirmed = onrush::kernel::record::Confirmed {
            member: r.member,
            id: r.id,
            item: r.item,
            quantity: r.quantity,
            points: r.points,
            free_after: r.free_after,
            held_after: r.held_after,
            at: r.at,
        };
        let mut line = lines[at].clone();
        line.set(&confirmed.into());
        lines.insert(at + 1, line);
        (Check::Rules, Where::redemption(r.id).with_seq(seq(at + 1)))
    }),
    ("a confirmation of other points", |lines| {
        let (seq, record) = edit(lines, |record| match record {
            Record::Confirmed(r) => {
                r.points = plus(r.points, 1);
                true
            }
            _ => false,
        });
        let Record::Confirmed(r) = record else { unreachable!() };
        (Check::Rules, Where::redemption(r.id).with_member(r.member).with_seq(seq))
    }),
    ("a hold expired before its time", |lines| {
        let (seq, record) = edit(lines, |record| match record {
            Record::Released(r) if r.expired => {
                r.at = NodeTime::new(r.at.get() - 100_000);
                true
            }
            _ => false,
        });
        let Record::Released(r) = record else { unreachable!() };
        (Check::Rules, Where::redemption(r.id).with_seq(seq))
    }),
    ("a hold that ends before it begins", |lines| {
        let (seq, record) = edit(lines, |record| match record {
            Record::Held(r) => {
                r.expires_at = NodeTime::new(5);
                true
            }
            _ => false,
        });
        let Record::Held(r) = record else { unreachable!() };
        (Check::Rules, Where::redemption(r.id).with_seq(seq))
    }),
    ("a member beyond the limit", |lines| {
        let (seq, r) = append(lines, BAG, 5, 20);
        (Check::Rules, of(seq, &r).with_item(BAG))
    }),
    ("a redemption of an ended sale", |lines| {
        let (seq, r) = append(lines, PEN, 1, 30);
        (Check::SaleTimes, of(seq, &r))
    }),
    ("members who are not eligible", |lines| {
        edit(lines, |record| match record {
            Record::SaleDefined(r) if r.definition.contains("1-250") => {
                r.definition = r.definition.replace("1-250", "1-99");
                true
            }
            _ => false,
        });
        let at = find(lines, 0, |r| match r {
            Record::Redeemed(r) => r.item == PEN && r.member.get() > 99,
            _ => false,
        });
        let Record::Redeemed(r) = lines[at].record() else { unreachable!() };
        (Check::Rules, of(seq(at), &r).with_item(PEN))
    }),
    ("fewer units granted than were sold", |lines| {
        edit(lines, |record| match record {
            Record::Granted(r) if r.item == MUG => {
                r.granted = 20;
                true
            }
            _ => false,
        });
        (Check::I11, Where::item(MUG))
    }),
    ("more units granted than are in the sale", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::Granted(r) if r.item == MUG => {
                r.granted = 121;
                true
            }
            _ => false,
        });
        (Check::I1, Where::item(MUG).with_seq(seq))
    }),
    ("a total that is no sum", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::StockChanged(r) if r.item == PEN && !r.added => {
                r.total_after += 25;
                true
            }
            _ => false,
        });
        (Check::I1, Where::item(PEN).with_seq(seq))
    }),
    ("more units returned than granted", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::Returned(r) => {
                r.returned = 5_000;
                true
            }
            _ => false,
        });
        (Check::I1, Where::item(PEN).with_seq(seq))
    }),
    ("a redemption on a shard that had seen the pause", |lines| {
        let is_pause = |shard| {
            move |r: &Record| match r {
                Record::ChangeSeen(r) => r.shard == shard && r.change == SaleChange::Paused,
                _ => false,
            }
        };
        let (first, second) = (find(lines, 0, is_pause(0)), find(lines, 0, is_pause(1)));
        let line = Line { at: lines[first].at, ..lines.remove(second) };
        lines.insert(first + 1, line);
        let at = find(
            lines,
            first + 2,
            |r| matches!(r, Record::Redeemed(r) if Slot::of(r.member).get() % 2 == 1),
        );
        let Record::Redeemed(r) = lines[at].record() else { unreachable!() };
        (Check::SaleTimes, of(seq(at), &r))
    }),
    ("a sale opened after its end", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::SaleChanged(r) if r.sale == SaleIndex::new(1) => {
                r.sale = SaleIndex::new(0);
                true
            }
            _ => false,
        });
        (Check::SaleTimes, Where::seq(seq))
    }),
    ("a change that a shard saw and nobody made", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::ChangeSeen(r) if r.change == SaleChange::Opened => {
                r.change = SaleChange::Ended;
                true
            }
            _ => false,
        });
        (Check::SaleTimes, Where::seq(seq))
    }),
    ("keys dropped of a sale that goes on", |lines| {
        let (seq, _) = edit(lines, |record| match record {
            Record::KeysDropped(r) => {
                (r.sale, r.first_item, r.item_count) = (SaleIndex::new(1), BAG, 1);
                true
            }
            _ => false,
        });
        (Check::I6, Where::seq(seq))
    }),
    ("a record in another member's slot", |lines| {
        let at = find(lines, 5, |r| matches!(r, Record::Opened(_)));
        let record = lines[at].record();
        lines[at].slot = Slot::new((lines[at].slot.get() + 1) % 4096);
        lines[at].set(&record);
        (Check::Journal, Where::member(member_of(&record).unwrap()).with_seq(seq(at)))
    }),
    ("bytes of no kind of record", |lines| {
        let at = find(lines, 5, |r| matches!(r, Record::Redeemed(_)));
        lines[at].bytes[0] = 77;
        (Check::Journal, Where::seq(seq(at)))
    }),
    ("a member's record among the sales'", |lines| {
        let at = find(lines, 5, |r| matches!(r, Record::Opened(_)));
        let record = lines[at].record();
        lines[at].slot = CONTROL;
        lines[at].set(&record);
        (Check::Journal, Where::seq(seq(at)))
    }),
];

#[test]
fn every_wrong_record_is_found_by_its_invariant_and_its_place_is_named() {
    assert!(TAMPERED.len() >= 20);
    for (name, tamper) in TAMPERED {
        let mut lines = right().lines.clone();
        let (check, at) = tamper(&mut lines);
        let data = right().with_journal(&lines, 200);
        assert_found(name, &folder::audit(data.path()), check, at);
    }
}

/// The damage that a start refuses is a finding as well, and nothing else is said then.
#[test]
fn a_damaged_frame_before_a_durable_one_fails_the_audit() {
    let data = right().copy();
    let path =
        onrush::journal::open::journal_dir(data.path()).join(onrush::journal::segments::name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3 * 4096 + 200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_found("damage", &folder::audit(data.path()), Check::Journal, Where::default());
}
