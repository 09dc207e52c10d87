//! The rules of each family and the words that a match of them always has. Pure data.
//!
//! In a pattern a space stands for what is between two words of one sentence, `{gN}` for up to N words, and a name in
//! angle brackets for one of [`PARTS`]. Matching knows no case. What a pattern needs is a verb and an object of an
//! attack: developers say "ignore", "role" and "run" all day.

use super::Family;

/// A family's rules.
pub(super) struct Rules {
    /// Which family.
    pub family: Family,
    /// A match begins at most so many bytes before one of its words…
    pub before: usize,
    /// … and ends at most so many after it.
    pub after: usize,
    /// At least one of these, in lower case and with commas between them, is in every match. One that ends in `~` is the
    /// name of an assignment.
    pub words: &'static str,
    /// The patterns.
    pub patterns: &'static [&'static str],
}

/// Pieces of several patterns.
const PARTS: &[(&str, &str)] = &[
    (
        "<ignore>",
        r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget|neglect|overlook|dismiss|abandon|discard|skip|pay no attention to|(?:do not|don'?t|stop|never|no longer|quit|cease) (?:follow|obey|respect)(?:ing)?|(?:do not|don'?t|stop|never|quit) (?:comply(?:ing)? with|listen(?:ing)? to|adher(?:e|ing) to))",
    ),
    ("<earlier>", r"(?:previous|prior|earlier|above|preceding|foregoing|initial|original|your|system|safety|hidden)"),
    (
        "<orders>",
        r"(?:instructions?|guidelines?|directives?|directions|prompts?|polic(?:y|ies)|rules?|orders|guardrails?|restrictions|programming|constraints|safeguards)",
    ),
    (
        "<limits>",
        r"(?:restrictions?|limits?|limitations?|filters?|rules|guidelines|guardrails|safety|censorship|constraints)",
    ),
    (
        "<show>",
        r"(?:show|tell|print|reveal|output|repeat|display|give|dump|leak|disclose|write|translate|recite|quote|expose|share|paste)",
    ),
    ("<machine>", r"(?:ai|a\.i\.|model|assistant|chatbot|bot|llm|gpt|persona|agent)"),
    (
        "<secret>",
        r"(?:env(?:ironment)?(?: |_)?var\w*|\.env\b|secrets?\b|api[\x20_-]?keys?|access[\x20_-]?(?:tokens?|keys?)|(?:service ?account|session|bearer) tokens?|\btokens?\b|credentials?|passwords?|private[\x20_-]?keys?|secret keys?|ssh keys?|id_rsa|/etc/(?:passwd|shadow)|kubeconfig|\.kube/config|conversation(?: history)?|source code|database|customer \w+|/run/secrets)",
    ),
    (
        "<outside>",
        r"(?:https?://|webhook|\bgist\b|pastebin|transfer\.sh|external (?:server|host)|my (?:server|webhook|e-?mail|address|endpoint)|attacker|evil|@[a-z0-9-]+\.[a-z]|dns lookup|markdown image|query string|url of an? )",
    ),
];

/// All families but the one of tricks with Unicode.
pub(super) const ALL: &[Rules] = &[
    Rules {
        family: Family::IgnoreInstructions,
        before: 130,
        after: 170,
        words: "ignor,disregard,forget,neglect,overlook,dismiss,abandon,discard,pay no,follow,obey,respect,\
                comply,listen,adher,skip,told,no longer appl,void,lifted,revoked,cancel,suspended",
        patterns: &[
            r"\b<ignore> {g4}<earlier> {g3}<orders>\b",
            r"\b<ignore> {g2}(?:these|those|all|any|every|such) {g2}(?:instructions?|guidelines?|directives?|prompts?)\b",
            r"\b<ignore> {g2}<orders> {g3}(?:above|given|so far|you (?:were|have been|had|have|received|got)|(?:that )?came before)\b",
            r"\b<ignore> {g3}(?:everything|anything|whatever|what|all) (?:that )?(?:you(?:'ve|'re)?|the (?:system|operator|developers?|administrator|organization|platform)) {g3}(?:told|said|says|instructed|learned|given|taught|wrote)\b",
            r"\b<ignore> {g1}everything {g1}(?:above this|before this|up to (?:now|this|here)|until now|so far)\b",
            r"\b(?:everything|anything|whatever|all) you(?:'ve| have| were)? (?:been )?told {g3}(?:was|is)\b",
            r"\b(?:your|previous|prior|earlier|those) {g1}<orders> (?:no longer appl(?:y|ies)|(?:are|have been|is) (?:now )?(?:void|lifted|revoked|cancell?ed|suspended))\b",
        ],
    },
    Rules {
        family: Family::RoleChange,
        before: 110,
        after: 150,
        words: "unrestricted,unfiltered,uncensored,jailbroken,no longer,you are now,you're now,you r now,\
                from now,from this,from here,act as,act like,behave,respond as,respond like,speak as,\
                speak like,talk like,answer as,answer like,reply as,reply like,function as,operate as,\
                as if you,as though you,pretend,imagine,suppose,persona,character,identity of,roleplay,\
                role-play,being a,being the,part of,role of,no norms,avoid norms,says no,complies,refuse",
        patterns: &[
            r"\byou(?:'re| are| r) now {g3}(?:unrestricted|unfiltered|uncensored|jailbroken|unbound|god|root|evil|hacker|shell|owner|administrator|character|dan|<machine>)\b",
            r"\byou(?:'re| are) no longer {g3}(?:bound|restricted|limited|required|obliged|<machine>)\b",
            r"\bfrom (?:now|this (?:moment|point|second)|here)(?: on(?:wards?)?)? you(?:'re| are| will| shall| must| act| become)\b",
            r"\byou(?:'ll| will| shall)? (?:now )?(?:play|take) (?:the )?(?:part|role) of {g2}(?:unrestricted|evil|hacker|administrator|owner|<machine>)\b",
            r"\b(?:act|behave|respond|answer|speak|reply|talk|function|operate) (?:as|like)(?: if| though)? (?:you (?:were|are|had|have) )?{g3}(?:<machine> (?:without|with no|that has no|that had no|who|that was|named|called)|unrestricted|unfiltered|uncensored|jailbroken|full administrator|root shell|hacker|no <limits>|no {g1}<limits>|never given {g1}<limits>)\b",
            r"\bact as (?:stan|dan|evil|omega|an unrestricted)\b",
            r"\b(?:pretend|imagine|suppose|roleplay|role-play) (?:that )?(?:as |to be |being )?(?:you(?:'re| are| were)? )?{g3}(?:<machine> (?:with|without)|evil|unrestricted|unfiltered|jailbroken|no <limits>|hacker|root|administrator|owner)\b",
            r"\b(?:stop|quit|cease) being {g1}<machine>\b",
            r"\bassume the (?:identity|persona) of\b|\bswitch (?:your )?(?:persona|character)\b",
            r"\b(?:always complies|never says no|strives? to avoid norms|never refuses)\b|\byou (?:do not|don't|never|cannot|can't) refuse\b",
        ],
    },
    Rules {
        family: Family::SystemClaim,
        before: 170,
        after: 180,
        words: "system:,system :,system],system ],system -,system>,system|,system *,system),system message,\
                system override,system notice,system note,system update,system prompt,role,im_start,admin:,\
                admin],admin notice,admin note,admin message,admin override,administrator,[developer,\
                [ developer,your,prompt,instruction,above,before this,before that,came before,hereby,\
                authorize,authorise,authorizing,authorising,you are,you must,you may,turned off,\
                switched off,are off,is off,disabled,suspended,lifted,revoked,removed,approval,not log,\
                locked",
        patterns: &[
            r"(?:^|\n)[^a-z0-9\n]{0,8}(?:system|admin(?:istrator)?)(?: (?:message|override|notice|note|update|prompt))?[\])>*\s]{0,6}[:\]>-]{g8}(?:you|the user|safety|restrictions?|reveal|grant|permissions?|disclose|unrestricted|disable|approval|policy|assistant)\b",
            r"\[ ?(?:system|admin(?:istrator)?|developer)(?: (?:message|override|notice|note))? ?\]{g8}(?:you|safety|restrictions?|reveal|disable|maintenance|previous|log|policy|assistant)\b",
            r"<\|? ?(?:system|im_start) ?\|?>{g6}(?:you|obey|always|must|never|user)\b",
            r"\b<show> {g4}your {g2}(?:system prompt|system message|hidden \w+|initial (?:instructions?|prompt)|(?:secret|original) (?:instructions?|prompt))\b",
            r"\b(?:reveal|leak|disclose|repeat|recite|dump) {g3}your {g1}instructions\b",
            r"\b<show> {g3}the (?:complete|full|entire|exact|hidden|whole|secret) {g2}(?:system prompt|prompt|instructions)\b",
            r"\b<show> {g2}(?:everything|the (?:text|words|content|instructions|prompt|conversation)) (?:above|before this|that (?:comes|came) before)\b",
            r"\bwhat (?:does|do|is|are|were|was) (?:in )?your {g1}(?:system prompt|initial (?:prompt|instructions)|hidden \w+|instructions)\b",
            r"\b(?:developer|creator|administrator|admin|owner|operator|staff|openai|anthropic|google)\b {g8}(?:authori[sz](?:e|ing) you|hereby|you must|you may now|you are (?:allowed|authori[sz]ed|permitted)|your restrictions)\b",
            r"\b(?:safety {g2}|all |policy |your |content )(?:checks?|enforcement|restrictions?|filters?|safeguards|configuration|limits) {g2}(?:are|is|have been|has been|were|was) (?:now )?(?:turned off|switched off|off|disabled|suspended|lifted|revoked|removed)\b",
            r"\b(?:note|message|notice) from (?:the )?(?:system )?administrator\b",
            r#"role["']? ?[:=] ?["']?system["']?[^a-z0-9]{1,8}content["']? ?[:=]{g8}(?:obeys?|always|never|no limits?|unrestricted|every request)\b"#,
            r"\b(?:tool )?approvals? (?:are|is) (?:not|no longer) (?:needed|required)\b|\bdo not log the (?:next|following) commands?\b",
            r"\b(?:sections?|rules|policy) (?:that )?{g2}(?:operator|administrator) (?:has )?locked\b",
            r"\bsystem override\b",
        ],
    },
    Rules {
        family: Family::Jailbreak,
        before: 130,
        after: 150,
        words: "jailbr,do anything now,dan mode,god mode,sudo mode,evil mode,developer mode,unrestricted,\
                unfiltered,uncensored,hidden,your,the model,the ai,safety,ethical,moral,guardrail,guideline,\
                restriction,limitation,censorship,constraint,content policy,content filter,any filter,\
                a filter,no filter,no limits,any limits,no rules,any rules,no safety,escap,break out,\
                get out of,sudo ",
        patterns: &[
            r"\bjailbreak (?:yourself|mode|the {g1}<machine>|this {g1}<machine>|and answer)\b|\b(?:been|be|now|are) jailbroken\b",
            r"\bdo anything now\b|\bdan mode\b",
            r"\b(?:enter|enable|activate|unlock|switch to|use|turn on) {g2}(?:dan|god|unrestricted|unfiltered|uncensored|hidden|sudo|jailbreak|evil) {g1}mode\b|\b(?:hidden|secret) unrestricted mode\b|\bin (?:dan|god|jailbreak|unrestricted) mode\b",
            r"\bdeveloper mode (?:where|in which|so that) you\b",
            r"\b(?:bypass|circumvent|evade|get around|defeat|work around|disable|turn off|switch off|remove|lift|override|deactivate|drop|avoid)(?:ing)? {g2}(?:your|the model'?s|the ai'?s) {g3}(?:polic(?:y|ies)|safeguards?|checks?|protocols?|training|<limits>)\b",
            r"\b(?:bypass|circumvent|evade|get around|defeat|disable|turn off|override|deactivate)(?:ing)? {g1}(?:all|any|every|these) {g1}(?:safety|content|ethical|moral) (?:checks?|polic(?:y|ies)|<limits>)\b",
            r"\b(?:bypass|circumvent|evade|get around|defeat)(?:ing)? the (?:guardrails?|content policy|safety \w+|content filters?)\b",
            r"\brestrictions? {g4}(?:on|for|upon) you\b",
            r"\b(?:answer|respond|reply|speak|write|say|talk) {g6}without (?:any |a )?{g2}(?:moral|ethical|restrictions?|filter|limitations|guidelines|censorship)\b",
            r"\b<machine> (?:without|with no|that has no|has no|that had no) {g2}<limits>\b",
            r"\b(?:escape|break out of|get out of) (?:the |this |your )(?:sandbox|container|jail|pod|vm) (?:and|through|via|to the host)\b|\bescape your (?:sandbox|container)\b",
            r"\b(?:freed?|released|liberated) from (?:the |all |your )?{g1}<limits>\b|\bno rules here\b|\bif you had no <limits>\b|\bsudo (?:reveal|show|print|give)\b",
        ],
    },
    Rules {
        family: Family::Execution,
        before: 210,
        after: 210,
        words: "| sh,|sh,| bash,|bash,| sudo,|sudo,| zsh,rm -rf,rm -fr,/dev/tcp/,/bin/sh,/bin/bash,eval(,\
                eval (,exec(,exec (,assert(,execute(,execut,powershell,pwsh,:|:,silently,secretly,quietly,\
                without asking,without telling,without informing,without confirm,without approval,\
                without permission,don't ask,do not ask,don't tell,do not tell,don't mention,do not mention,\
                don't inform,do not inform,don't notify,do not notify,no questions,hide the output,\
                os.system,passwd -d,/etc/shadow,attached",
        patterns: &[
            r"\b(?:silently|secretly|immediately|without asking|no need to ask|quietly|do it)\b[^\n]{0,80}(?:curl|wget)\b[^\n|]{0,120}\|\s{0,3}(?:sudo )?(?:ba|z|da)?sh\b",
            r"\b(?:curl|wget)\b[^\n|]{0,80}(?:https?://\d{1,3}\.\d|evil|attacker)[^\n|]{0,80}\|\s{0,3}(?:sudo )?(?:ba|z|da)?sh\b",
            r"\b(?:curl|wget)\b[^\n|]{0,120}\|\s{0,3}(?:sudo )?(?:ba|z|da)?sh\b[^\n]{0,40}\b(?:no need to ask|without|do not|don't)\b",
            r"\brm -(?:rf|fr) (?:--no-preserve-root )?(?:/|~/?|\$home/?|/\*)(?:[\s`'\x22;&]|$)",
            r"/dev/tcp/\d|\bnc(?:at)?\b[^\n]{0,40}-e /bin/(?:ba)?sh|/bin/(?:ba)?sh[^\n]{0,10}\bnc\b",
            r"\b(?:eval|exec|execute|assert)\s?\(\s?(?:atob|base64|__import__|decodeuricomponent|string\.fromcharcode|gzinflate|\$_(?:get|post|request))",
            r"\b(?:powershell|pwsh)(?:\.exe)?\s(?:-\w+\s){0,4}-e(?:nc|ncodedcommand)?\s",
            r":\(\)\s?\{\s?:\|:&\s?\}",
            r"\b(?:silently|secretly|quietly) (?:run|execute)\b|\bexecute\b[^\n.]{0,60}\b(?:silently|secretly)\b|\brun this {g2}quietly\b|\brun {g4}(?:for me )?quietly\b",
            r"\b(?:run|execute|evaluate|launch|start)\b[^\n]{0,120}\b(?:without (?:asking|telling|informing|confirmation|approval|permission)|do not ask|don't ask|no questions|(?:don't|do not) (?:tell|inform|notify|mention)|hide the output)\b",
            r"\b(?:without (?:telling|informing|asking)|(?:don't|do not) (?:tell|inform|notify)) the (?:user|maintainer|human|owner)s?\b",
            r"\b<machine> (?:must|has to|should|shall) {g2}execute\b",
            r"\bos\.system\s?\(\s?.{0,2}(?:curl|wget|nc )",
            r"\bpasswd -d root\b|\bchmod \d{3,4} /etc/shadow\b",
            r"\brun (?:the )?attached (?:script|binary|payload) (?:with sudo|as root)\b",
        ],
    },
    Rules {
        family: Family::ActiveContent,
        before: 200,
        after: 340,
        words: "<script,javascript:,vbscript:,data:text/html,data:text/javascript,data:application/,onerror,\
                onload,onclick,onmouseover,onfocus,ontoggle,onbegin",
        patterns: &[
            r"<script\b[^>]{0,200}\bsrc\s?=\s?(?:https?:)?//",
            r"<script\b[^>]{0,100}>[^<]{0,200}(?:document\.cookie|localstorage|sessionstorage|alert\s?\(|eval\s?\(|atob\s?\(|fetch\s?\(\s?.https?://|window\.location|xmlhttprequest)",
            r"\bjavascript:\s?(?:alert|eval|fetch|document|window|parent|location|confirm|prompt|import|new\s|this\.|top\.|self\.|atob|\w{1,20}\.postmessage)",
            r"\bvbscript:\s?\w",
            r"\bdata:(?:text/html|text/javascript|application/(?:x-)?javascript)\b",
            r"<[a-z]{1,12}\b[^>]{0,160}[\s/\x22']on(?:error|load|click|mouseover|focus|toggle|begin)\s?=\s?[\x22']?[^\x22'>]{0,80}(?:alert|eval|fetch|document\.|location|atob|new image|window\.)",
        ],
    },
    Rules {
        family: Family::Exfiltration,
        before: 270,
        after: 200,
        words: "http,webhook,gist,pastebin,transfer.sh,external server,external host,my server,my e,\
                my address,my endpoint,attacker,evil,@,dns lookup,markdown image,query string,url of a,curl,\
                wget,| nc,your,you use,this agent,from the environment,configured,![,exfiltrat,\
                commit message,contents of /etc",
        patterns: &[
            r"\b(?:send|upload|post|forward|transmit|transfer|e?mail|copy|leak|exfiltrate|share|submit|append|include|paste|dump|publish|put|attach|deliver)\b[^\n]{0,60}<secret>[^\n]{0,80}<outside>",
            r"\b(?:read|collect|take|gather|dump|copy|cat)\b[^\n]{0,60}<secret>[^\n]{0,60}\b(?:send|upload|post|paste|forward|share|publish)\b[^\n]{0,60}<outside>",
            r"\bcurl\b[^\n]{0,80}(?:-d|--data(?:-binary|-raw)?|-f|-t|--upload-file)[=\x20]?[^\n]{0,12}(?:/root/|~/|/etc/|\.ssh|\.aws|\.kube|/run/secrets|/var/run)",
            r"\b(?:cat|base64)\b[^\n|]{0,60}(?:\.ssh|\.aws|\.kube|/etc/(?:passwd|shadow)|/run/secrets|\.env)\b[^\n]{0,60}\|[^\n]{0,60}\b(?:curl|nc|wget)\b",
            r"\b<show> {g3}your (?:own )?{g1}(?:api keys?|access tokens?|credentials?|secrets?|passwords?|token)\b",
            r"\b(?:<show>|include) (?:me |us )?(?:all |the |every )+{g1}(?:api keys?|access tokens?|secrets?|credentials?|passwords?) {g4}(?:you use|configured|of this agent|from the environment|in your (?:next )?(?:answer|reply|response))\b",
            r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{0,160}(?:\{\{|\$\{|[?&]\w{1,20}=\))",
            r"\bexfiltrate (?:the|all|any|this|every)\b",
            r"\b(?:secretly|hide|quietly) {g2}(?:(?:include|add|append|put) )?{g4}<secret> {g2}in the commit message\b",
            r"\b(?:forward|send) (?:a )?(?:copy|copies|everything|it|them) {g6}(?:[a-z0-9._-]{1,40}@[a-z0-9-]{1,40}\.|attacker)",
            r"\bdns lookup of [^\n]{0,40}<secret>|\bpost the contents of /etc/",
        ],
    },
    Rules {
        family: Family::Credentials,
        before: 60,
        after: 150,
        words: "akia,ghp_,gho_,ghu_,ghs_,ghr_,glpat-,sk-,xoxb-,xoxa-,xoxp-,xoxr-,xoxs-,aiza,\
                private key-----,eyj,password~,passwd~,pwd~,secret~,api_key~,api-key~,apikey~,access_key~,\
                access-key~,accesskey~,secret_key~,secret-key~,secretkey~,token~,://",
        patterns: &[
            r"\bakia[0-9a-z]{16}\b",
            r"\bgh[pousr]_[a-z0-9]{30,}|\bglpat-[a-z0-9_-]{20,}",
            r"\bsk-(?:ant-|proj-)?[a-z0-9_-]{0,40}[0-9][a-z0-9_-]{16,}",
            r"\bxox[baprs]-[0-9a-z-]{12,}",
            r"\baiza[0-9a-z_-]{33,}",
            r"-----begin (?:[a-z]{2,12} ){0,2}private key-----",
            r"\beyj[a-z0-9_-]{10,}\.eyj[a-z0-9_-]{10,}\.[a-z0-9_-]{10,}",
            r"\b(?:\w{0,20}_)?(?:password|passwd|pwd|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|access[_-]?key|(?:auth[_-]?)?token)[\x22']?\s?(?:=|:)\s?[\x22']?(?:[a-z!@#%^&*+/_-]{1,40}[0-9]|[0-9]{1,20}[a-z!@#%^&*+/_-])[a-z0-9+/=_!@#%^&*-]{5,}",
            r"[a-z0-9+]{2,15}://[^\s:/@\x22'<>]{1,40}:[^\s:/@\x22'<>${}]{0,30}[0-9][^\s:/@\x22'<>${}]{4,30}@[a-z0-9]",
        ],
    },
    Rules {
        family: Family::Override,
        before: 130,
        after: 150,
        words: "new role,new instruction,new system prompt,new directive,overrid,overrul,supersede,\
                precedence,priority over,outrank,your,unlock,following rules,new policy,new policies,\
                new rule,the old,locked",
        patterns: &[
            r"\b(?:your|assigned a|have a) new role\b",
            r"(?:^|[\n\[(*#>]\s?|\b(?:here (?:are|is)|with|and) )new (?:instructions?|system prompt|directives?) ?[\]*]{0,3}:",
            r"\bnew (?:instructions?|directives?|system prompt) {g4}(?:replaces?|overrides?|supersedes?) {g2}(?:old|previous|original|earlier|ones?)\b",
            r"\byour (?:new|updated) (?:instructions?|system prompt|directives?|guidelines|task)\b",
            r"\b(?:these|this|my|the following|new) {g1}(?:instructions?|directives?|message|words|rules?|prompt) {g3}(?:overrides?|overriding|supersedes?|takes? precedence over|ha(?:s|ve) priority over|overrules?|outranks?)\b",
            r"\b(?:replace|update|rewrite|reset|change|modify|override|overwrite|discard) {g1}your {g2}(?:instructions|guidelines|rules|directives|system prompt|programming|polic(?:y|ies)|restrictions)\b",
            r"\b(?:polic(?:y|ies)|rules?|prompt|restrictions?) {g2}(?:overridden|overruled|superseded) by (?:this message|the user|me|my|mine)\b",
            r"\boverride[\]:]{1,3}{g4}(?:unlock|locked|polic(?:y|ies)|restrictions?|grant)\b",
            r"\blocked {g1}(?:polic(?:y|ies)|sections?|rules?) {g3}(?:do(?:es)? not apply|no longer appl(?:y|ies))\b|\bunlock {g1}locked\b",
            r"\bsupersedes? {g2}role\b|\bload the following rules\b",
            r"\bfrom now on {g2}new (?:polic(?:y|ies)|rules?|instructions)\b",
            r"\bdiscard the old (?:one|instructions|role)\b",
        ],
    },
    Rules {
        family: Family::EndOfPrompt,
        before: 80,
        after: 260,
        words: "end of,end the,end prompt,end system,end instruction,end polic,end context,end rules,\
                ends here,</system,</ system,</prompt,</instruction,</sys,<|im_end,<|endoftext,<|eot_id,\
                <|end_of_turn,[/inst],<</sys>>,human:",
        patterns: &[
            r"[-=#*<\[\x22'/(_]{1,20}\s{0,3}end(?: of)?(?: the)? (?:system )?(?:prompt|instructions?|polic(?:y|ies)|context|rules)\b",
            r"(?-i:\bEND OF (?:THE )?(?:CONTEXT|PROMPT|SYSTEM PROMPT|INSTRUCTIONS|POLICY|RULES)\b)",
            r"\b(?:system )?prompt ends here\b",
            r"</\s?(?:system|system_prompt|system-prompt|instructions?|prompt|sys)\s?>",
            r"<\|(?:im_end|endoftext|eot_id|end_of_turn)\|>\s{0,4}(?:\n|<\||system|assistant|user|human)",
            r"\[/inst\][^a-z\n`]{0,3}[a-z]|<</sys>>",
            r"\n\nhuman: [^\n]{0,200}\n\nassistant:",
            r"\nhuman: ?(?:show|ignore|reveal|print)\b",
        ],
    },
];

/// Makes a regular expression of a pattern.
pub(super) fn expand(pattern: &str) -> String {
    // Between two words of a sentence.
    // Emphasis may be there, but names_in_code are one word.
    const BETWEEN: &str = "(?:_?[^a-z0-9.!?_]+_?)";
    let mut full = pattern.to_owned();
    for (name, part) in PARTS {
        full = full.replace(name, part);
    }
    // A part may stand in a part.
    for (name, part) in PARTS {
        full = full.replace(name, part);
    }
    for words in 1..=8 {
        let gap = format!("(?:[a-z0-9]+{BETWEEN}){{0,{words}}}");
        // Behind something that is not a word, what is between words comes first.
        full = full.replace(&format!("]{{g{words}}}"), &format!("]{BETWEEN}{gap}"));
        full = full.replace(&format!(">{{g{words}}}"), &format!(">{BETWEEN}{gap}"));
        full = full.replace(&format!("}}{{g{words}}}"), &format!("}}{BETWEEN}{gap}"));
        full = full.replace(&format!("{{g{words}}}"), &gap);
    }
    full.replace(r"\b", r"(?:\b|_)").replace(' ', BETWEEN)
}

/// The regular expression with every count of repetitions taken out: it finds all that the other one does, and more.
pub(super) fn loosen(full: &str) -> String {
    let mut loose = String::with_capacity(full.len());
    let mut rest = full;
    while let Some(at) = rest.find('{') {
        let (text, count) = (&rest[..at], &rest[at + 1..]);
        let closed =
            count.find('}').filter(|_| !text.ends_with('\\') && count.starts_with(|c: char| c.is_ascii_digit()));
        loose.push_str(text);
        let Some(end) = closed else {
            loose.push('{');
            rest = count;
            continue;
        };
        loose.push(if count.starts_with('0') { '*' } else { '+' });
        rest = &count[end + 1..];
    }
    loose + rest
}

/// What stands behind the name in an assignment.
pub(super) const ASSIGNS: [&str; 6] = ["=", ":", " =", " :", "\"", "'"];
