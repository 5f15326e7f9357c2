"""The rules of `dialogue_facts`: what a first-person sentence says, and how one asks for it."""

from memory_service.training.fact_patterns import (
    AM,
    DEED,
    END,
    HAVE,
    NUMBER,
    SELF,
    THING,
    Rule,
    kin_rules,
    make_rule,
    verb_rules,
)

RULES: tuple[Rule, ...] = (
    # names
    make_rule(
        "name", r"my name is (?P<v>.+)$", "What is my name? / What's my name?", "what|my name is"
    ),
    make_rule(
        "pet_name",
        r"my (?P<x>[\w -]+?)(?:'s)?(?: name)? (?:is|are) (?:named|called) (?P<v>.+)$",
        "What is my {x} called? / What's the name of my {x}?",
        "what|my {x} is called / what|the name of my {x} is",
    ),
    make_rule(
        "pet_name",
        r"my (?P<x>[\w -]+?)'s? names? (?:is|are) (?P<v>.+)$",
        "What is my {x} called? / What's the name of my {x}?",
        "what|my {x} is called",
    ),
    make_rule(
        "pet_name",
        rf"{SELF}(?:have|own|had|got|adopted) (?:an?|one|two|three|\d) (?P<x>[\w -]+?),? "
        rf"(?:named|called|whose name is) {THING}",
        "What is the name of my {x}? / What is my {x} called?",
        "what|the name of my {x} is",
    ),
    # age, family and relationship
    make_rule(
        "age",
        rf"{AM}(?P<v>\d+|\w+teen|twenty[\w-]*|thirty[\w-]*|forty[\w-]*|fifty){END}",
        "How old am I? / What is my age?",
        "how old|I am / what age|I am",
    ),
    make_rule(
        "status",
        rf"{AM}(?P<v>(?:not |happily |recently |newly )?(?:married|single|engaged|divorced|dating|"
        r"widowed|in a relationship|separated)\b.*)$",
        "What is my relationship status? / Am I single or with someone?",
        "what|my relationship status is",
    ),
    make_rule(
        "count",
        rf"{HAVE}(?P<v>{NUMBER}) (?P<x>(?:[a-z'-]+ ){{0,2}}[a-z'-]+s|children|kids)$",
        "How many {x} do I have?",
        "how many {x}|I have",
    ),
    make_rule(
        "count",
        rf"{HAVE}(?P<v>{NUMBER}) (?P<x>(?:[a-z'-]+ )?(?:kids|children|[a-z'-]+s)) "
        r"(?:who|and|that|named|with|,)",
        "How many {x} do I have?",
        "how many {x}|I have",
    ),
    # places
    make_rule(
        "home",
        rf"{SELF}live (?:in|on|at|near|by|close to|around) {THING}",
        "Where do I live? / What sort of place do I live in?",
        "where|I live",
    ),
    make_rule(
        "home", rf"{AM}living (?:in|on|at|near) {THING}", "Where am I living?", "where|I live"
    ),
    make_rule(
        "live_with", rf"{SELF}live with (?P<v>.+)$", "Who do I live with?", "who|I live with"
    ),
    make_rule(
        "lived",
        rf"{SELF}(?:have )?lived (?:in|on|at|near) {THING}",
        "Where did I live? / Where did I once live?",
        "where|I lived",
    ),
    make_rule(
        "grew_up",
        rf"{SELF}(?:grew up|was raised) (?:in|on|near|at) {THING}",
        "Where did I grow up?",
        "where|I grew up",
    ),
    make_rule(
        "born",
        rf"{SELF}was born (?:in|on|at) {THING}",
        "Where was I born? / When was I born?",
        "where or when|I was born",
    ),
    make_rule(
        "from",
        rf"(?:{AM}|{SELF}come |my family is |we are )(?:originally )?from {THING}",
        "Where am I from? / Where do I come from?",
        "where|I am from / where|I come from",
    ),
    make_rule(
        "moving",
        rf"{AM}moving (?:to|into|in|back to) {THING}",
        "Where am I moving?",
        "where|I am moving",
    ),
    make_rule(
        "moved",
        rf"{SELF}(?:have )?moved (?:to|into|from|back to) {THING}",
        "Where did I move?",
        "where|I moved",
    ),
    make_rule(
        "been",
        rf"(?:{HAVE})(?:been|traveled|gone|flown) to {THING}",
        "Where have I been?",
        "where|I have been",
    ),
    make_rule(
        "visited",
        rf"(?:{HAVE}|{SELF})visited {THING}",
        "Which place did I visit?",
        "which place|I visited",
    ),
    make_rule(
        "go_place", rf"{SELF}(?:go|travel|get away) to {THING}", "Where do I go?", "where|I go"
    ),
    make_rule(
        "school",
        rf"{SELF}(?:go|went) to (?P<v>(?:[\w ]+ )?(?:college|university|school))\b.*$",
        "What school did I go to? / Where did I go to school?",
        "what school|I went to",
    ),
    make_rule(
        "went",
        rf"{SELF}went (?:to|on) {THING}",
        "Where did I go? / Where was it that I went?",
        "where|I went",
    ),
    make_rule(
        "going",
        rf"(?:{AM}going|{SELF}will be going) to (?P<v>(?:the|an?|[A-Z]\w+|my|college)\b.*)$",
        "Where am I going?",
        "where|I am going",
    ),
    # work and study
    make_rule(
        "work_as",
        rf"(?:{SELF}work(?:ed)?|{AM}working|{HAVE}worked) as {THING}",
        "What do I do for a living? / What do I work as? / What is my job?",
        "what|I work as / what|I do for a living",
    ),
    make_rule(
        "work_for",
        rf"(?:{SELF}work|{AM}working|{AM}employed) for {THING}",
        "Who do I work for?",
        "who|I work for",
    ),
    make_rule(
        "work_in",
        rf"(?:{SELF}work|{AM}working|{AM}employed|{SELF}have a job) in {THING}",
        "What field or place do I work in? / Where do I work?",
        "where|I work / what|I work in",
    ),
    make_rule(
        "work_at",
        rf"(?:{SELF}work|{AM}working|{AM}employed|{SELF}have a job) (?:at|from) {THING}",
        "Where do I work?",
        "where|I work",
    ),
    make_rule(
        "work_time",
        rf"{HAVE}been (?P<x>(?:an?|\w+ing) .+?|\w+ing) for (?P<v>.+)$",
        "How long have I been {x}?",
        "how long|I have been {x}",
    ),
    make_rule(
        "used_work",
        rf"{SELF}(?:used to work|worked) (?:at|for) (?P<v>.+)$",
        "Where did I use to work?",
        "where|I used to work",
    ),
    make_rule(
        "used_work",
        rf"{SELF}(?:used to work|worked) in (?P<v>.+)$",
        "What field did I use to work in?",
        "what field|I used to work in",
    ),
    make_rule(
        "used_work",
        rf"{SELF}used to (?:work as|be) (?P<v>an? .+)$",
        "What did I use to be?",
        "what|I used to be",
    ),
    make_rule(
        "degree",
        rf"(?:{HAVE}|{SELF}(?:got|earned) )an? (?P<x>(?:[\w']+ )?degree|bachelor's|master's|"
        rf"major|minor|phd) in {THING}",
        "What do I have a {x} in?",
        "what|I have a {x} in",
    ),
    make_rule(
        "work",
        rf"{SELF}(?:do|work) (?P<v>.+?) for a living$",
        "What do I do for a living?",
        "what|I do for a living",
    ),
    make_rule(
        "work",
        rf"{SELF}(?P<v>\w+(?: \w+){{0,3}}) for a living$",
        "What do I do for a living?",
        "what|I do for a living",
    ),
    make_rule(
        "job",
        r"my (?:job|occupation|profession|career) is (?P<v>.+)$",
        "What is my job? / How would I describe my job?",
        "what|my job is",
    ),
    make_rule(
        "job",
        rf"{AM}an? (?P<v>(?:[\w-]+ )*(?:"
        r"teacher|nurse|lawyer|driver|engineer|programmer|developer|chef|cook|artist|writer|author|"
        r"doctor|dentist|singer|musician|actor|actress|dancer|waiter|waitress|manager|farmer|"
        r"painter|designer|accountant|lifeguard|mechanic|pilot|vet|veterinarian|librarian|"
        r"photographer|hairdresser|banker|baker|soldier|officer|cashier|bartender|secretary|"
        r"professor|scientist|therapist|consultant|electrician|plumber|contractor|salesman|"
        r"assistant|technician|model|comedian|janitor|firefighter|journalist|attorney|realtor|"
        r"analyst|barista|nanny|carpenter|freelancer|social worker|homemaker))\b.*$",
        "What do I do for a living? / What is my occupation? / What do I do?",
        "what|I do for a living / what|my occupation is",
    ),
    # plans, wishes and what one can do
    make_rule(
        "used_to",
        rf"{SELF}used to (?P<x>have|own|be|play|live in|like|enjoy|love|drive|watch) "
        rf"{THING}",
        "What did I use to {x}?",
        "what|I used to {x}",
    ),
    make_rule("used_to", rf"{SELF}used to {DEED}", "What did I use to do?", "what|I used to do"),
    make_rule(
        "wish_to",
        rf"(?:{SELF}|i'd |i would )(?P<verb>want|would like|would love|like|love|hope|plan|"
        rf"intend|prefer|hate|need|have|try|wish|aspire|get|hoped|wanted|tend|decided) to {DEED}",
        "What do I {verb} to do?",
        "what|I {verb} to do",
    ),
    make_rule(
        "want_who",
        rf"{SELF}(?P<verb>want|need|would like) (?P<x>my \w+) to {DEED}",
        "What do I {verb} {x} to do?",
        "what|I {verb} {x} to do",
    ),
    make_rule(
        "plan_on",
        rf"{SELF}(?P<verb>plan on|think about|thought about) {DEED}",
        "What was I planning or thinking of?",
        "what|I {verb}",
    ),
    make_rule(
        "going_to",
        rf"{AM}(?P<x>going|planning|trying|hoping|looking|able|excited|ready|learning|"
        rf"about|willing|happy|saving up|supposed|unable|starting|used) to {DEED}",
        "What am I {x} to do?",
        "what|I am {x} to do",
    ),
    make_rule(
        "state_of",
        rf"{AM}(?P<x>(?:not |very |so |really |quite |a bit |a big fan |a huge fan |a fan )?"
        rf"(?:allergic to|afraid of|scared of|good at|bad at|great at|interested in|of|into|"
        r"fond of|"
        r"familiar with|tired of|excited about|excited for|proud of|worried about|nervous about|"
        r"obsessed with|passionate about|addicted to|looking for|looking at|thinking about|"
        r"thinking of|planning on|planning|considering|studying|learning|taking|working on|"
        r"working with|reading|watching|getting|saving for|saving up for|looking into|"
        r"writing|buying|training for|looking forward to|used to|part of|a member of|majoring in|"
        r"making|playing|trying|building|teaching|having|seeing|wearing|a fan of|a big fan of|"
        r"a huge fan of|terrified of|named after|picky about|skilled at|jealous of|in love with|"
        rf"interested|preparing for|growing|hoping for|busy with|friends with)) {THING}",
        "What am I {x}?",
        "what|I am {x}",
    ),
    make_rule(
        "will",
        rf"(?:{SELF}(?P<verb>will|might|may|can|could|would|should|can't|cannot|won't|wouldn't) "
        rf"|i'd |i'll )(?:also |probably |likely )?{DEED}",
        "What did I say I {verb} do? / What was it I said I {verb} do?",
    ),
    make_rule(
        "know_how",
        rf"{SELF}know how to {DEED}",
        "What do I know how to do?",
        "what|I know how to do",
    ),
    make_rule(
        "never",
        rf"(?:{HAVE}|{SELF})never (?P<v>.+)$",
        "What have I never done? / What don't I ever do?",
        "what|I never did",
    ),
    make_rule(
        "not",
        rf"{SELF}(?:do not|don't|dont) (?:really )?(?P<verb>like|have|want|enjoy|"
        rf"eat|know|watch|drink|own|think|believe in|need|play|get|mind|care for|trust) (?:to )?"
        rf"(?:any )?{THING}",
        "What don't I {verb}?",
        "what|I don't {verb}",
    ),
    make_rule(
        "not",
        rf"{SELF}(?:do not|don't|dont) (?P<v>.+)$",
        "What did I say I don't do?",
        "what|I don't do",
    ),
    make_rule(
        "not",
        rf"{SELF}(?:did not|didn't) (?P<verb>\w+) {THING}",
        "What didn't I {verb}?",
        "what|I didn't {verb}",
    ),
    make_rule("not_am", rf"{AM}not (?P<v>.+)$", "What did I say I am not?", "what|I am not"),
    # pastimes
    make_rule(
        "doing",
        rf"{SELF}(?P<verb>like|love|enjoy|hate|prefer|miss|started|remember|like to go) "
        rf"(?P<x>watching|playing|reading|eating|listening to|making|drinking|riding|driving|"
        rf"writing|cooking|visiting|collecting|painting|taking|learning|wearing|baking) {THING}",
        "What do I {verb} {x}?",
        "what|I {verb} {x}",
    ),
    make_rule(
        "doing",
        rf"{SELF}(?P<verb>like|love|enjoy|hate|prefer) (?=\w+ing\b){DEED}",
        "What do I {verb} doing?",
        "what|I {verb} doing",
    ),
    make_rule(
        "time_on",
        rf"{SELF}spend (?P<x>.*?(?:time|hours|days|weekends|money|evenings))(?: on)? "
        r"(?P<v>.+)$",
        "How do I spend {x}?",
        "how|I spend {x}",
    ),
    make_rule(
        "volunteer",
        rf"{SELF}volunteer(?:ed)? (?:at|with|for|in) {THING}",
        "Where do I volunteer?",
        "where|I volunteer",
    ),
    make_rule(
        "favorite",
        r"(?P<v>.+?) (?:is|are|was) (?:one of )?(?P<x>my (?:all time |all-time )?favou?rites?"
        r"(?: .+)?)$",
        "What is {x}?",
        "what|{x} is",
    ),
    make_rule(
        "favorite",
        r"(?P<x>my (?:least )?(?:favorite|favourite) .+?|one of my (?:favorite|favourite)"
        r" .+?) (?:is|are|was|were) (?P<v>.+)$",
        "What is {x}?",
        "what|{x} is",
    ),
    make_rule(
        "kind_of",
        rf"{SELF}(?P<verb>drive|have|own|play|want|need|wear) an? (?P<v>[\w-]+) "
        r"(?P<x>car|truck|job|house|home|degree|membership|phone|band|family|store|business|guitar|"
        r"bike|boat|dog|cat|garden|collection|restaurant|allergy|computer|camera|wife|husband)"
        r"(?: .*)?$",
        "What kind of {x} do I {verb}?",
        "what kind of {x}|I {verb}",
    ),
    make_rule("can_skill", rf"{SELF}can (?P<v>.+)$", "What can I do?", "what|I can do"),
    *kin_rules(),
    make_rule(
        "opinion",
        rf"{SELF}(?:think|believe|feel|find|feel like)(?: that)? (?P<x>(?!i\b|it\b|there\b)"
        r".{2,40}?) (?:is|are|was|were|to be|would be|can be) (?P<v>.+)$",
        "What do I think of {x}? / What is my opinion of {x}?",
        "what|I think of {x}",
    ),
    make_rule(
        "opinion",
        rf"{SELF}find (?P<x>[\w' ]+?) (?P<v>(?:very |so )?[a-z]+)$",
        "How do I find {x}? / What do I think of {x}?",
        "what|I think of {x}",
    ),
    make_rule(
        "feel",
        rf"{SELF}(?:feel|felt|get|got|am feeling) (?P<v>[a-z]+)(?P<rest> (?:when|if|about|after|"
        r"during|at|on|in|with) .+)$",
        "How do I feel?",
        "how|I feel",
    ),
    make_rule(
        "been_doing",
        rf"{HAVE}been (?P<x>\w+ing(?: to| on| for| at| in)?) {THING}",
        "What have I been {x}?",
        "what|I have been {x}",
    ),
    make_rule(
        "have_done",
        rf"{HAVE}(?P<x>had|seen|read|watched|played|made|taken|tried|worked|met|bought|"
        rf"written|lost|built|done|owned|learned|started|studied|heard of|heard|won|run|"
        rf"not (?:seen|read|tried|watched|played|met|heard of)) {THING}",
        "What have I {x}?",
        "what|I have {x}",
    ),
    make_rule(
        "have_done",
        rf"{HAVE}(?P<x>\w{{3,}}ed(?: in| at| for| to| with| on| about| from)?) {THING}",
        "What have I {x}?",
        "what|I have {x}",
    ),
    make_rule(
        "must", rf"(?:{SELF}have|i've got) to {DEED}", "What do I have to do?", "what|I have to do"
    ),
    make_rule("wish", rf"{SELF}wish (?P<v>.+)$", "What do I wish?", "what|I wish"),
    make_rule(
        "was_a", rf"{SELF}was (?P<v>an? .+|in .+|on .+)$", "What did I say I was?", "what|I was"
    ),
    make_rule(
        "was_doing",
        rf"{SELF}was (?P<x>\w+ing|interested in|raised by|raised) {THING}",
        "What was I {x}?",
        "what|I was {x}",
    ),
    *verb_rules(),
    make_rule(
        "state_of",
        rf"{AM}(?P<x>\w{{3,}}ing(?: to| for| on| with| at| about| in)?) {THING}",
        "What am I {x}?",
        "what|I am {x}",
    ),
    make_rule(
        "self",
        rf"{AM}(?P<v>(?:an? |very |pretty |quite |in |on |at |more |a bit )?.+)$",
        "How did I describe myself? / What did I tell {you} about myself?",
        "what|I am",
    ),
    make_rule(
        "my_thing",
        r"my (?P<x>[\w' -]{2,30}?) (?:is|are|was|were|has|have) (?P<v>.+)$",
        "What did I say about my {x}? / What did I tell {you} about my {x}?",
    ),
    make_rule(
        "my_thing",
        r"my (?P<x>\w+(?: \w+)?) (?P<v>\w+(?:s|ed|t) .+)$",
        "What did I say about my {x}? / What did I tell {you} about my {x}?",
    ),
)
"""Tried in this order; a sentence goes to the first rule that makes a sound question of it."""
