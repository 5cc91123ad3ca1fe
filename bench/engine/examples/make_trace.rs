//! Writes `traces/demo-chat.jsonl`: `cargo run -p warmroute-engine --example make_trace`.
//!
//! All text is made up here, for this purpose; the same program writes the same file every time.
//! Passengers of an imaginary ferry line chat with its help desk: everybody shares a long system
//! prompt, nobody shares anything else, and every turn repeats the conversation before it.

use warmroute_engine::load::{Session, Trace, Turn};

const SESSIONS: usize = 28;
/// Mean time between two sessions' starts.
const START_EVERY_MS: u64 = 120;
const THINK_MS: (u64, u64) = (100, 500);
const USER_BYTES: (usize, usize) = (200, 800);
const ANSWER_TOKENS: (u64, u64) = (24, 48);

const SYSTEM: &str = "\
You are the help desk of Northwater Ferries, a small passenger and car ferry line that serves the \
islands of the Northwater archipelago. You answer passengers in writing, around the clock.

How you answer. Be brief, warm and exact. Answer the question that was asked before you offer \
anything else. Use short sentences and plain words. If you do not know something, say so and name \
the place where the passenger can find out. Never guess a departure time, a price or a rule. Give \
times on the 24-hour clock and dates with the name of the day. Do not use headings or tables unless \
the passenger asks for a list.

The network. The line serves six ports: Harrow Quay on the mainland, and the island ports of \
Stenness, Little Orran, Great Orran, Vayle and Cape Minnow. Every crossing starts or ends at Harrow \
Quay, except the inter-island boat, which goes round Stenness, Little Orran and Great Orran twice a \
day in summer and once a day in winter. Vayle has no linkspan: the boat there takes foot \
passengers, bicycles and small freight only. Cape Minnow is a request stop and has to be booked by \
18:00 on the day before.

The ships. Curlew and Dunlin are car ferries with 92 lane metres, a cafe, two quiet lounges and a \
lift between all decks. Sanderling is a fast passenger boat with 140 seats and room for 20 bicycles. \
Turnstone is the relief ship; she is slower by a quarter of an hour on every route and has no lift, \
so a passenger who needs step-free access must be told when she is on duty.

Tickets. A ticket is for one named crossing. It can be moved once, free of charge, until two hours \
before departure, and after that for a fee of five crowns as long as the ship has not left. Children \
under five travel free and need a ticket all the same, because the ship counts heads. From five to \
fifteen they pay half. A book of ten crossings costs as much as eight, is valid for a year from the \
first crossing, and can be shared within one household. Tickets bought on board cost two crowns more.

Vehicles. A vehicle is charged by its length, mirrors and bicycle racks included. Up to five metres \
is the small rate, up to seven the middle rate, and anything longer is charged by the started metre. \
Drivers arrive forty minutes before departure, and lose their place but not their money if they come \
later than twenty minutes before. Electric cars may charge at Harrow Quay and at Great Orran, not on \
board. Gas bottles must be shut and declared. Trailers are vehicles of their own.

Bicycles and luggage. A bicycle costs three crowns on the car ferries and has to be booked on \
Sanderling, where the racks fill up on fine weekends. Folding bicycles in a bag are luggage. Each \
passenger may bring two pieces of luggage that one person can carry. Surfboards, kayaks and cellos \
are taken as small freight, at ten crowns a piece, and are loaded by the crew.

Animals. Dogs travel free on a lead, on the outer decks and in the aft lounge. Assistance dogs go \
wherever their people go. Cats and smaller animals stay in a closed box. Horses and farm animals \
need a vehicle place and a letter from the island vet, and are not carried in winds above force six.

Access. Passengers who use a wheelchair, or who would like a hand, should tell us a day ahead if \
they can, and will be helped in any case if they cannot. There is a wheelchair on loan at every \
port. The gangway at Stenness is steep at low water; the crew then use the car deck.

Weather. The master decides whether a ship sails, and nobody ashore can say so earlier than the \
master does. We send a message three hours before a crossing that is in doubt. If a crossing is \
cancelled the passenger may take any later one within fourteen days, or have the money back in full \
within five working days. We do not pay for hotels, but each port keeps a list of people who let \
rooms. Delays of more than an hour give a quarter of the fare back, on request, within a month.

Lost property is kept at the port where the ship spent the night, for sixty days. Describe the thing, \
the crossing and the deck, and ask for a telephone number. Medicine and keys are posted at our cost.

Groups of twelve or more have a tenth off and one contact person. Schools of the archipelago travel \
free on two days a year. Weddings may hire Turnstone from Monday to Thursday outside July and August.

Freight. Parcels up to thirty kilograms go on any crossing if handed in an hour before, and are kept \
for three days on arrival. Fish, flowers and newspapers go first. Anything that must stay cold needs \
its own box. Dangerous goods go on the Tuesday freight crossing only, with papers, and never with \
passengers.

Food and quiet. The cafe on Curlew and Dunlin opens a quarter of an hour after departure and closes \
a quarter of an hour before arrival. There is soup, there is bread, and there is a children's corner \
with a window. Sanderling sells coffee and buns from a trolley in calm weather only. The quiet lounge \
on the upper deck is for sleeping and reading; telephones ring elsewhere. Bring your own food by all \
means, except hot fish, about which the crews have strong feelings.

Getting about ashore. A bus meets every car ferry at Stenness and Great Orran, and the driver waits \
for a late ship, but not for the fast boat. Little Orran is small enough to walk. At Vayle the shop \
by the pier hires out bicycles from Easter to October. At Cape Minnow there is nothing but a shelter, \
a tap and the path to the lighthouse, which takes fifty minutes in good shoes and is not lit.

What you must not do. Do not change a booking unless the passenger has given the booking number and \
the surname on it. Do not read out another person's booking. Do not promise a refund that the rules \
above do not give; say that a colleague will look at it, and give the number of the office, open from \
8:00 to 17:00 on working days. If someone is in danger at sea, tell them to call 112 first.";

const OPENINGS: [&str; 8] = [
    "Hello, this is {name}, and I am trying to plan a trip from Harrow Quay to {port} on {day}.",
    "Good {part}, {name} here; we are {count} people who want to be in {port} by {day} {part}.",
    "Hi there, my {kin} lives in {port} and I would like to visit on {day} with {thing}.",
    "I booked a crossing to {port} for {day} and something about it has changed since.",
    "My name is {name}, I run a small {shop} in {port} and I send {thing} across every {day}.",
    "We are on our way to {port}, it is our first time on the islands, and my {kin} is rather nervous.",
    "I have a question about {ship}, which I believe takes us to {port} on {day} {part}.",
    "{name} again, I wrote to you last {day} about {thing} and the boat to {port}.",
];

const SENTENCES: [&str; 28] = [
    "There will be {count} of us, and my {kin} would like to bring {thing} if there is room for it.",
    "If the wind gets up on {day}, would it be wiser to take the {part} boat instead?",
    "The last time we sailed on {ship} the aft lounge was full before we had left the quay.",
    "Could you tell me how early we should be there, given that we also carry {thing}?",
    "Somebody in {port} told us that {ship} is away for repairs until {day}, is that so?",
    "My {kin} walks with a stick and would rather not climb more stairs than is needed.",
    "We can be flexible by a day or so, but we have to be back at work on {day} {part}.",
    "The car is {length} metres long with the rack on, and I am not sure which rate that is.",
    "I still have {count} crossings left in a book of ten that we bought in the spring.",
    "What happens to my ticket if the bus from town is late and we miss the {part} departure?",
    "Please do not change anything yet, I only want to understand what it would cost.",
    "I left {thing} on the upper deck of {ship}, near the door with the painted {animal} on it.",
    "The {animal} is calm on boats as long as nobody feeds it, which children tend to do.",
    "On the way back we might get off at {port} for a night and go on with the next boat.",
    "Is the inter-island boat a good way to see {port}, or is there too little time ashore?",
    "A colleague of yours said {count} crowns on the telephone, the page says something else.",
    "We would be glad of a quiet corner, because the little one sleeps at that hour.",
    "Does the cafe have anything warm in the {part}, or should we pack our own supper?",
    "I would pay for my {kin} as well, so it should all be on one booking if that can be done.",
    "The parcel weighs about {count} kilograms and has to stay dry more than it has to stay cold.",
    "How would we get from the pier at {port} to the lighthouse without a car?",
    "If there is a list of rooms for the night, could you tell me where to ask for it?",
    "I read that {ship} has no lift, and that would settle the matter for us.",
    "We were an hour and {count} minutes late last week and nobody mentioned any money back.",
    "Would it be cheaper to leave the car on the mainland and hire bicycles in {port}?",
    "I have tried the page {count} times and it forgets my {kin} at the last step.",
    "They forecast fog for {day}, and I remember that the horn made my {kin} laugh last year.",
    "Could {thing} go ahead on an earlier crossing and wait for us in {port}?",
];

const FOLLOW_UPS: [&str; 10] = [
    "Thank you, that helps, but one thing is still not clear to me.",
    "All right, then let us say {day} in the {part} and see how that works out.",
    "I have talked to my {kin} in the meantime and we see it a little differently now.",
    "That is good to know, and it leads me straight to my next question.",
    "Sorry to come back to this, I should have mentioned {thing} at the start.",
    "Fine, and now suppose that {ship} is on duty that day, does it change your answer?",
    "Hm, I am not sure I follow, so let me put it in another way.",
    "Good, we shall do it like that, apart from {port}, where we have to be on {day}.",
    "I wrote that down, and {name} here beside me asks the following.",
    "Understood, and please forgive the long message, there is a little more to it.",
];

const NAMES: [&str; 14] = [
    "Ines", "Torben", "Mairi", "Oskar", "Lene", "Fergus", "Agnes", "Pavel", "Ruta", "Callum",
    "Signe", "Bram", "Elspeth", "Jonas",
];
const PORTS: [&str; 5] = ["Stenness", "Little Orran", "Great Orran", "Vayle", "Cape Minnow"];
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const PARTS: [&str; 3] = ["morning", "afternoon", "evening"];
const SHIPS: [&str; 4] = ["Curlew", "Dunlin", "Sanderling", "Turnstone"];
const KIN: [&str; 8] = [
    "sister",
    "grandfather",
    "neighbour",
    "daughter",
    "old teacher",
    "cousin",
    "uncle",
    "flatmate",
];
const THINGS: [&str; 12] = [
    "a crate of seedlings",
    "two kayaks",
    "a cello",
    "the big pram",
    "a tandem",
    "a box of honey jars",
    "a wheelchair",
    "a small trailer",
    "four surfboards",
    "a grandfather clock",
    "a tent and its poles",
    "a basket of kittens",
];
const SHOPS: [&str; 5] = ["bakery", "book shop", "smokehouse", "guest house", "boat yard"];
const ANIMALS: [&str; 5] = ["seal", "pony", "sheepdog", "goat", "heron"];

fn main() -> std::io::Result<()> {
    let mut dice = Dice(20_260_914);
    let mut start_ms = 0;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let turns = (0..dice.between(6, 8)).map(|index| turn(&mut dice, index == 0)).collect();
        sessions.push(Session { id: format!("chat-{number:02}"), start_ms, turns });
        start_ms += dice.between(START_EVERY_MS / 2, START_EVERY_MS * 3 / 2);
    }
    let trace = Trace { system: SYSTEM.to_owned(), sessions };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/traces/demo-chat.jsonl");
    std::fs::write(path, trace.to_jsonl())
}

fn turn(dice: &mut Dice, is_first: bool) -> Turn {
    let (low, high) = USER_BYTES;
    let length = dice.between(low as u64, high as u64 - 120) as usize;
    let mut user = fill(dice, if is_first { &OPENINGS } else { &FOLLOW_UPS });
    let mut last = "";
    while user.len() < length {
        let template = dice.pick(&SENTENCES);
        if template != last {
            user.push(' ');
            user.push_str(&fill(dice, &[template]));
            last = template;
        }
    }
    Turn {
        think_ms: if is_first { 0 } else { dice.between(THINK_MS.0, THINK_MS.1) },
        user,
        max_tokens: dice.between(ANSWER_TOKENS.0, ANSWER_TOKENS.1),
    }
}

/// One of the templates with its slots filled.
fn fill(dice: &mut Dice, templates: &[&'static str]) -> String {
    let slots: [(&str, &[&'static str]); 9] = [
        ("{name}", &NAMES),
        ("{port}", &PORTS),
        ("{day}", &DAYS),
        ("{part}", &PARTS),
        ("{ship}", &SHIPS),
        ("{kin}", &KIN),
        ("{thing}", &THINGS),
        ("{shop}", &SHOPS),
        ("{animal}", &ANIMALS),
    ];
    let mut text = dice.pick(templates).to_owned();
    for (slot, words) in slots {
        while text.contains(slot) {
            text = text.replacen(slot, dice.pick(words), 1);
        }
    }
    text = text.replace("{count}", &dice.between(2, 29).to_string());
    text.replace("{length}", &format!("{}.{}", dice.between(4, 8), dice.between(0, 9)))
}

/// A splitmix64 generator.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number from `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn pick(&mut self, words: &[&'static str]) -> &'static str {
        words[(self.next() % words.len() as u64) as usize]
    }
}
